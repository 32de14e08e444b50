"""Every command of the pages that use published data sets is executed."""
import pytest

from tests.docs.pages import all_pages
from tests.docs.sandbox import scripts_of

PAGES = [page for page in all_pages() if not scripts_of(page)]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_its_commands_do_what_the_page_says(page, execute):
    failures = execute(page)
    assert not failures, "\n\n".join(failures)
