"""Published figures on the command line: read, counted, checked, refused."""

import pytest

from dermkit.claims import check_claim, checked_claims, parse_claim
from dermkit.errors import UsageError


def test_the_two_that_everybody_quotes() -> None:
    small, four = checked_claims(
        ["S2: accuracy=.4661,n=118", "S3: accuracy=.74,precision=.76,recall=.71,specificity=.75"]
    )
    assert small.sentences() == ["S2: accuracy 0.4661 is 55 of 118 images, 95 % interval 37.9 to 55.6 % (wilson)."]
    assert small.is_consistent and not four.is_consistent
    (said,) = four.sentences()
    assert said.startswith("S3: no single confusion matrix gives accuracy 0.74, precision 0.76")
    assert four.as_dict()["fits"] == {"binary": False, "averaged": False}


def test_sides_have_intervals_where_their_images_are_known() -> None:
    found = check_claim(parse_claim("x: sensitivity=.9,specificity=.8,accuracy=.82,n=200,positives=40"))
    assert {item.figure: (item.successes, item.n) for item in found.counted} == {
        "sensitivity": (36, 40), "specificity": (128, 160), "accuracy": (164, 200)
    }  # fmt: skip
    assert found.is_consistent
    assert "can be true at once" in found.sentences()[-1]


def test_a_matrix_of_any_size_may_do_what_none_of_this_size_can() -> None:
    loose = check_claim(parse_claim("sensitivity=.900,specificity=.800,accuracy=.850"))
    fixed = check_claim(parse_claim("sensitivity=.900,specificity=.800,accuracy=.850,n=200,positives=40"))
    assert loose.is_consistent and not fixed.is_consistent


def test_a_share_that_no_count_gives_is_a_problem() -> None:
    found = check_claim(parse_claim("accuracy=.4700,n=118"))
    assert not found.is_consistent
    assert "no count of 118 images" in found.sentences()[0]


def test_claims_of_one_name_are_told_apart() -> None:
    assert [item.claim.name for item in checked_claims(["accuracy=.5,n=10", "accuracy=.6,n=10"])] == [
        "published 1", "published 2"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "what"),
    [("S2:", "KEY=VALUE"), ("S2: n=118", "no figure"), ("accuracy=.5,accuracy=.6", "twice"), ("auc=.9", "not a figure"),
     ("accuracy=.5,n=0", "number of images"), ("accuracy=.5,n=1e3", "number of images"), ("accuracy=2", "0 to 1"),
     ("accuracy=.5,positives=3", "fewer than n"), ("accuracy=.5,n=3,positives=3", "fewer than n")],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_part(text: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        parse_claim(text)
