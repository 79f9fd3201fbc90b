"""Files that anybody may have written are read up to a limit, or refused in one line."""

import os

import pytest

from interp.errors import InterpError, SchemaError
from interp.files import read_json, read_text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b"[" * 100_000, "recursion"),
        (b'{"a": ' + b"9" * 6000 + b"}", "4300"),
        (b"\xff\xfe", "utf-8"),
        (b"[1]" + b" " * 100, "larger than"),
    ],
    ids=["empty", "deep", "digits", "bytes", "large"],
)
def test_what_is_no_json(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(SchemaError, match=rf"cannot read the index: .*{message}"):
        read_json(path, name="the index", error=SchemaError, most=50 if "larger" in message else 2**20)


def test_what_is_endless_or_not_there(tmp_path):
    for path, message in ((tmp_path / "none", "No such file"), (tmp_path, "directory"), (tmp_path / "a\0b", "null")):
        with pytest.raises(InterpError, match=message):
            read_text(path)
    with pytest.raises(InterpError, match=r"'/dev/zero': it is larger than 1e\+03 B|larger than 1 kB"):
        read_text(type(tmp_path)("/dev/zero"), most=1000)


def test_text_may_have_a_byte_order_mark_and_come_through_a_pipe(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path / "a.json") == [1]
    reader, writer = os.pipe()
    os.write(writer, b"text")
    os.close(writer)
    assert read_text(type(tmp_path)(f"/dev/fd/{reader}")) == "text"
    os.close(reader)
