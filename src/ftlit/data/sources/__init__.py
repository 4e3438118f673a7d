"""Find labelled images and texts: folders, csv files, published data sets, rendered glyphs."""
