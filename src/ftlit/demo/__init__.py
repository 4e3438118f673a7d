"""A page in the browser: a picture is dropped, and its classes, its class map and the nearest training images are shown."""
