"""What W&B wrote down: its offline files read back. They are logs in LevelDB's format, of protobuf records."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

BLOCK, HEADER = 32768, 7  # bytes; the file's own header has seven too


def payloads(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: chunks with a header (checksum, length, type), none across a block's end."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, parts = HEADER, []
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if left < HEADER or kind == 0:  # the rest of the block is empty
            at += left
            continue
        parts.append(data[at + HEADER : at + HEADER + length])
        at += HEADER + length
        if kind in (1, 4):  # a whole record, or its last part
            yield b"".join(parts)
            parts = []


class OfflineRun:
    """One start of a run, from its folder `offline-run-*`.

    `history` is a list of what was logged at a time, `summary` the last values; `run`, `environment` and `exit_code`
    are as W&B has them.
    """

    def __init__(self, folder: Path):
        from wandb.proto.wandb_internal_pb2 import Record

        (file,) = folder.glob("run-*.wandb")
        self.folder, self.history, self.summary, self.environment, self.exit_code = folder, [], {}, [], None
        for payload in payloads(file):
            record = Record.FromString(payload)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "history":
                self.history.append(values(record.history.item))
            elif kind == "summary":
                self.summary |= values(record.summary.update)
            elif kind == "environment":
                self.environment.append(record.environment)
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    def rows(self) -> list[dict]:
        """What was logged besides pictures, without W&B's own counters."""
        rows = [{k: v for k, v in row.items() if k[0] != "_" and "samples/" not in k} for row in self.history]
        return [row for row in rows if set(row) != {"step"}]

    def pictures(self, key: str) -> dict[int, tuple[bytes, str]]:
        """Step to file and caption of the pictures logged under a key."""
        rows = [row for row in self.history if f"{key}/path" in row]
        files = [self.folder / "files" / row[f"{key}/path"] for row in rows]
        return {row["step"]: (file.read_bytes(), row[f"{key}/caption"]) for row, file in zip(rows, files, strict=True)}


def values(items) -> dict:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def offline_runs(run: Path) -> list[OfflineRun]:
    """Every start of the run that W&B took down, in time."""
    return [OfflineRun(folder) for folder in sorted((run / "wandb").glob("offline-run-*"))]
