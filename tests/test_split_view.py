"""The split of an audit: a person's own may lack a side, which training refuses."""

from dataclasses import replace
from pathlib import Path

import pytest

from audit_inputs import make_subject
from dermkit.audit.split_view import read_audited_split
from dermkit.errors import DataError


def test_a_split_without_a_validation_side_can_be_audited(tmp_path: Path) -> None:
    dataset = replace(make_subject(["mel", "nv", "nv"]).dataset, folder=tmp_path)
    path = tmp_path / "mine.csv"
    path.write_text("image_id,split\n0000,train\n0001,test\n")
    sides = read_audited_split(dataset, path)
    assert sides.name == "mine"
    assert sides.names_for(dataset.manifest).tolist() == ["train", "test", ""]
    path.write_text("image_id,split\n")
    with pytest.raises(DataError, match="no image is in any split"):
        read_audited_split(dataset, path)
