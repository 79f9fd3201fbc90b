"""Files: what may be written where, writing that is whole or not at all, whose a file is, reading with a limit.

Every writer of the package comes through here. A file that is there is replaced where it is an earlier output of ours
(`is_ours`) or empty, never otherwise unless `force`. What is written stands under a hidden name beside its place until
it is complete, is flushed to the disk, and is then renamed: a full disk, an error or a kill leaves what was there.
"""

from interp.files.marks import WRITER, is_ours
from interp.files.reading import read_bytes, read_json, read_text
from interp.files.targets import HIDDEN, writable_file, writable_folder
from interp.files.writing import atomic_write, write_files, write_folder

__all__ = [
    "HIDDEN",
    "WRITER",
    "atomic_write",
    "is_ours",
    "read_bytes",
    "read_json",
    "read_text",
    "writable_file",
    "writable_folder",
    "write_files",
    "write_folder",
]
