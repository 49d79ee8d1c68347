"""Names that become files."""

import pytest

from limner_server.errors import InvalidInputError
from limner_server.names import check_name


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "a\0", "a\n", "ä", "a" * 65])
def test_a_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(InvalidInputError, match=r"cohort is .*; expected 1 to 64 letters, digits"):
        check_name("cohort", name)


def test_a_name_of_letters_and_digits_is_taken() -> None:
    assert check_name("cohort", "Cervix_2.1-b") == "Cervix_2.1-b"
