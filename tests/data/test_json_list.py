import json

import pytest

from switchkd.data import json_list
from switchkd.data.errors import DataError
from switchkd.data.json_list import read_json_list


@pytest.fixture(params=[1, 2, 7, 1 << 20])
def chunk(request, monkeypatch):
    """Bytes read at a time: every value, escape and character lies across a border."""
    monkeypatch.setattr(json_list, "CHUNK_BYTES", request.param)


VALUES = [
    {"id": 1, "text": 'café 三 😀 " \\ \n\t\b'},
    {"deep": [[[{"a": [1, -2.5e-7, True, False, None]}], []], {}]},
    {"bracket in text": "]}],[{", "long": "x" * 300, "id": 10**100},
    {},
]
TEXTS = {
    "plain": json.dumps(VALUES),
    "not escaped": json.dumps(VALUES, ensure_ascii=False),
    "over lines": json.dumps(VALUES, indent=3, ensure_ascii=False),
    "space around": "\r\n \t" + json.dumps(VALUES, separators=(" \n, ", "\t: ")) + " \n\n",
    "byte order mark": "\ufeff" + json.dumps(VALUES),
}


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_reads_what_json_reads(tmp_path, text):
    path = tmp_path / "list.json"
    path.write_bytes(text.encode())
    assert [value for _, value in read_json_list(path)] == VALUES


@pytest.mark.usefixtures("chunk")
def test_an_empty_list_has_no_values(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(" [\n ] ")
    assert list(read_json_list(path)) == []


@pytest.mark.usefixtures("chunk")
def test_every_value_has_the_line_where_it_begins(tmp_path):
    path = tmp_path / "list.json"
    path.write_text('[{"a":\n\n1},\n{"b": 2}, {"c": "x\\ny"},\n\n  {}]')
    assert [line for line, _ in read_json_list(path)] == [1, 4, 4, 6]


BROKEN = {
    "cut in a value": ('[{"a": 1},\n{"b": ', "line 2, column 7: .*perhaps cut off: Expecting value"),
    "cut in a text": ('[{"a": 1},\n{"b": "c', "line 2, column 7: .*Unterminated string"),
    "cut in an escape": ('[{"a": "\\u00', r"line 1, column 1\d: .*escape"),
    "cut after a value": ('[{"a": 1}\n', "line 2, column 1: .*Expecting ',' delimiter"),
    "cut after a comma": ('[{"a": 1},', "line 1, column 11: .*Expecting value"),
    "no comma": ('[{"a": 1}\n\n {"b": 2}]', "line 3, column 2: .*Expecting ',' delimiter"),
    "a comma too many": ('[{"a": 1}, ]', "line 1, column 12: .*Expecting value"),
    "more behind it": ('[{"a": 1}]\n[', "line 2, column 1: .*Extra data"),
    "bad escape": ('[{"a": "\\x' + 90 * "y" + '"}]', r"line 1, column \d+: .*Invalid \\+escape"),
    "line break in a text": ('[\n{"a": "b\nc' + 90 * "y" + '"}]', r"line 2, column 9: .*Invalid control character"),
    "too many digits": (f'[\n{{"a": {"1" * 5000}}}]', "from line 2: JSON cannot be read: Exceeds the limit"),
    "too deep": ("[" * 200_000, "from line 1: JSON cannot be read"),
    "not UTF-8": ('[{"a": 1},\n{"b": "caf\udce9"}]', "line 2: not UTF-8"),
    "half a character at the end": ('[{"a": 1},\n\udce4\udcb8', "line 2: not UTF-8"),
    "no list": ('{"a": 1}', r"line 1, column 1: .*Expecting '\['"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_errors_name_file_line_and_column(tmp_path, monkeypatch, text, message):
    path = tmp_path / "list.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    for size in (1 << 20, 3):
        monkeypatch.setattr(json_list, "CHUNK_BYTES", size)
        with pytest.raises(DataError, match=message) as caught:
            list(read_json_list(path))
        assert str(path) in str(caught.value)


def test_a_fault_is_found_without_reading_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr(json_list, "CHUNK_BYTES", 100)
    path = tmp_path / "list.json"
    path.write_text('[{"a" 1}, ' + '{"b": "c"}, ' * 10_000 + "{}]")
    with path.open("rb") as file:
        window = json_list._Window(file, path)
        assert window.next_character() == "["
        window.at += 1
        with pytest.raises(DataError, match=r"line 1, column 7: .*Expecting ':'"):
            window.value(json.JSONDecoder())
        assert file.tell() <= 8192
        assert len(window.text) <= 200
