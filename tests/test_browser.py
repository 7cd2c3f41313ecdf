"""The browser of the tests notices what the tests of pages rely on."""

import pytest
from browser import PHONE, visit

pytestmark = pytest.mark.browser


@pytest.mark.long
def test_requests_complaints_and_width_are_noticed(browser, tmp_path):
    (tmp_path / "quiet.html").write_text(
        "<!doctype html><title>t</title><img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>"
    )
    wide = "<img src='http://127.0.0.1:9/x.png'><script>missing()</script><div style='width: 500px'>wide</div>"
    (tmp_path / "loud.html").write_text(f"<!doctype html><title>t</title>{wide}")
    with visit(browser, (tmp_path / "quiet.html").as_uri(), PHONE) as quiet:
        assert quiet.elsewhere(tmp_path.as_uri()) == quiet.complaints == []
        assert quiet.sideways() == 0
    with visit(browser, (tmp_path / "loud.html").as_uri(), PHONE) as loud:
        assert loud.elsewhere(tmp_path.as_uri()) == ["http://127.0.0.1:9/x.png"]
        assert {"missing is not defined"} < set(loud.complaints)
        assert loud.sideways() > 0
