"""What a model card takes from the folder of a run."""

from ftlit.export.model_card import facts_of
from ftlit.formats import write_json


def test_a_run_of_a_custom_data_module_records_no_images(tmp_path):
    write_json(tmp_path / "data.json", {"run": "0123"})
    assert facts_of(tmp_path).images == {}
