"""What has drifted is noticed, and its page and line are named."""
import re

import pytest

from tests.docs.pages import Page
from tests.docs.sandbox import Sandbox

GOOD = "--cfg configs/dolg/r50_gldv2_8gpu.yaml"
FAULTY = f"""# A page

```bash
python tools/info.py {GOOD} --json output/info.json
cat output/info.json > output/copy.json

python tools/info.py --cfg configs/dolg/r50_gldv2_9gpu.yaml
python tools/info.py {GOOD} TRAIN.BATCH_SIZES 8
python tools/info.py --sizes 32 32 {GOOD}
python tools/info.py {GOOD}
    TRAIN.BATCH_SIZE 8
python tools/infos.py {GOOD}
cat output/inform.json
for NAME in infor; do
    python tools/info.py \\
        output/$NAME
done
python tools/info.py output/nothing | tail -n 1
```

```python
import json
with open("output/info.json") as file:
    count = json.load(file)["size"]
```

Words between.

```python
print(count)
raise ValueError("of the page")
```

```bash
echo "$UNSET"
```
"""
# The lines of the faults, and what is said there
SAID = {7: "no configuration file", 8: "did you mean 'TRAIN.BATCH_SIZE'",
        9: "unrecognized arguments: --sizes",
        11: "TRAIN.BATCH_SIZE: command not found", 12: "FileNotFoundError|No such file", 13: "No such file",
        15: "infor", 18: "nothing", 30: "line 31.*ValueError: of the page"}


@pytest.fixture
def run(tmp_path, published, start):
    def run(text: str) -> list[str]:
        (tmp_path / "page.md").write_text(text)
        return Sandbox(tmp_path, Page("page.md", tmp_path), published, start, {}).run()

    return run


def test_each_fault_is_named_with_its_line(run):
    reports = {int(re.match(r"page\.md:(\d+): ", report)[1]): report for report in run(FAULTY)}
    assert list(reports) == list(SAID)
    for line, said in SAID.items():
        assert re.search(said, reports[line], re.S), reports[line]


def test_a_page_that_bash_gives_up_is_no_success(run):
    assert "UNSET: unbound variable" in run('# A page\n\n```bash\necho "$UNSET"\n```\n')[0]


def test_a_fence_without_an_end(tmp_path):
    (tmp_path / "page.md").write_text("# A page\n\n```bash\nls\n")
    with pytest.raises(AssertionError, match="page.md:3: this block has no end"):
        Page("page.md", tmp_path).blocks


def test_links_and_headings_are_read(tmp_path):
    (tmp_path / "page.md").write_text(
        "# A page: `code`, [link](x.md)\n\n## Twice\n\n## Twice\n\n![a](b.jpg) [c\nd](e.md#f) `[g](h)`\n"
        "```text\n[i](j)\n# no heading\n```\n")
    page = Page("page.md", tmp_path)
    assert page.links == [(1, "x.md"), (7, "b.jpg"), (7, "e.md#f")]
    assert page.anchors == {"a-page-code-link", "twice", "twice-1"}
