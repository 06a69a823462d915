"""Sharded checkpoints on a file system or S3: the storage that torch's distributed checkpoints (DCP) write to and read.

A sharded checkpoint is a folder like every other one (:mod:`modelcore.training.state`), but for its tensors::

    shard-00003-of-00008.safetensors   what one rank held of the tensors that lie in pieces, one file a rank
    whole.safetensors                  the tensors that every rank holds alike
    index.json                         each tensor's shape and type, and where which piece of it is
    state.json, manifest.json          as always

torch's planners decide who writes and who reads what (:mod:`modelcore.training.pieces`). torch's own storage keeps its
index in a pickle, which can run code when it is read, or (for Hugging Face) in the headers of all files, which are then
opened to learn what is in them. Here it is JSON, and names a file for each piece: a rank fetches, and holds against the
SHA-256 sums in the manifest, only the files that it needs. The ranks of one run still tell each other their plans in
the way of :mod:`torch.distributed`; nothing that was stored is unpickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner, TensorWriteData
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from modelcore import storage
from modelcore.atomic import put_in_place, sync, write_json
from modelcore.errors import InputError
from modelcore.files import file_digest
from modelcore.training.checkpoint_files import INDEX, STATE
from modelcore.training.pieces import LoadPlanner as PiecesLoadPlanner
from modelcore.training.pieces import pieces_of

WHOLE = "whole.safetensors"


@dataclass(frozen=True)
class Stored:
    """Where a piece of a tensor is.

    Attributes:
        file: Name of the file.
        key: The piece's name in it.
        size: The file's bytes.
        sha256: The file's SHA-256 sum in hexadecimal.
    """

    file: str
    key: str
    size: int = 0
    sha256: str = ""


class Writer(StorageWriter):
    """Writes one checkpoint, of which nothing can be found until its first rank has seen all ranks' files.

    On a file system the ranks, of however many machines, write into one hidden folder that is renamed in the end. To S3
    each uploads its files by itself, and the manifest goes last.

    Args:
        address: The checkpoint's folder, or its ``s3://`` address.
        scratch: Local folder for what is to be uploaded.
        rank: This process's number.
        size: Number of processes.
        state: Content of ``state.json``; that of the first process counts.
    """

    def __init__(self, address: str, scratch: Path, rank: int, size: int, state: Mapping[str, Any]) -> None:
        self._address, self._scratch, self._rank, self._state = address, scratch, rank, state
        self._file = f"shard-{rank:05d}-of-{size:05d}.safetensors"
        self._remote = storage.is_remote(address)
        path = Path(address)
        # The name that remove_leftovers looks for, eight letters included; all ranks must find the same one.
        self._shared = path.with_name(f".{path.name}.sharding.tmp")

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Does nothing: there is one object for each checkpoint."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Any will do; the address counts."""
        return True

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Does nothing."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Leaves the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On the first rank, before any rank writes: removes what an earlier attempt left."""
        if self._remote:
            storage.delete_directory(self._address)
        else:
            shutil.rmtree(self._shared, ignore_errors=True)
            self._shared.mkdir(parents=True)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """On every rank: writes, sums and flushes this rank's files, and uploads them where that is asked for."""
        tensors: dict[str, dict[str, Tensor]] = {}
        places: list[tuple[MetadataIndex, str, str]] = []
        for item in plan.items:
            box = cast(Tensor, planner.resolve_data(item))
            file, key = WHOLE, item.index.fqn
            if self._rank > 0 or box.shape != cast(TensorWriteData, item.tensor_data).size:
                file, key = self._file, f"{key}@{','.join(map(str, item.index.offset or ()))}"
            tensors.setdefault(file, {})[key] = box.contiguous()
            places.append((item.index, file, key))

        def write(folder: Path) -> dict[str, Stored]:
            written = {}
            for name, content in tensors.items():
                save_file(content, folder / name)
                sync(folder / name)
                written[name] = Stored(name, "", (folder / name).stat().st_size, file_digest(folder / name))
            return written

        written = self._through_scratch(write) if self._remote else write(self._shared)
        results = [
            WriteResult(index, written[file].size, Stored(file, key, written[file].size, written[file].sha256))
            for index, file, key in places
        ]
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the first rank, when all files are there: writes the index, the state and the manifest.

        Raises:
            InputError: If a file of another rank is not to be seen here.
        """
        stored = {result.index: result.storage_data for each in results for result in each}
        files = {each.file: {"size": each.size, "sha256": each.sha256} for each in stored.values()}
        if not self._remote:
            for name in files:
                if not (self._shared / name).is_file():
                    raise InputError(
                        f"{name} of another process does not arrive in {self._shared.parent}: processes on several "
                        "machines need a folder that all of them share, or an s3:// address"
                    )
            self._describe(self._shared, metadata, stored, files)
            path = Path(self._address)
            put_in_place(self._shared, path)
            shutil.rmtree(self._shared, ignore_errors=True)  # a damaged one that stood there
        else:
            self._through_scratch(lambda folder: self._describe(folder, metadata, stored, files))

    def discard(self) -> None:
        """On the first rank, when no rank writes any more: removes what there is of a checkpoint that failed."""
        if self._remote:
            with contextlib.suppress(InputError):  # the next attempt removes it
                storage.delete_directory(self._address)
        else:
            shutil.rmtree(self._shared, ignore_errors=True)

    def _describe(
        self, folder: Path, metadata: Metadata, stored: Mapping[MetadataIndex, Stored], files: Mapping[str, Any]
    ) -> None:
        tensors: dict[str, dict[str, Any]] = {}
        for name, saved in tensors_of(metadata).items():
            pieces = []
            for chunk in saved.chunks:
                place = stored[MetadataIndex(name, chunk.offsets)]
                piece = {"offset": list(chunk.offsets), "shape": list(chunk.sizes), "file": place.file}
                pieces.append(piece | {"key": place.key})
            dtype = str(saved.properties.dtype).removeprefix("torch.")
            tensors[name] = {"dtype": dtype, "shape": list(saved.size), "pieces": pieces}
        write_json(folder / INDEX, {"version": 1, "tensors": tensors})
        write_json(folder / STATE, self._state)
        described = {
            name: {"size": (folder / name).stat().st_size, "sha256": file_digest(folder / name)}
            for name in (INDEX, STATE)
        }
        write_json(folder / storage.MANIFEST, dict(sorted({**files, **described}.items())))

    def _through_scratch(self, write: Callable[[Path], Any]) -> Any:
        """What ``write`` gives, whose files are uploaded."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        name = self._address.rpartition("/")[2]
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=self._scratch))
        try:
            result = write(folder)
            storage.upload_directory(folder, self._address)
            return result
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class Reader(StorageReader):
    """Reads pieces of a checkpoint, sharded or not.

    Args:
        files: The local path of each of its files by name.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self._pieces: dict[MetadataIndex, Stored] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Does nothing: there is one object for each checkpoint."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Any will do; the address counts."""
        return True

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the index has been read with the metadata."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Leaves the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Leaves the plans as they are."""
        return plans

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Shapes and places of all tensors, named ``part/tensor``; of a checkpoint that is not sharded by its headers.

        Raises:
            InputError: If the index is of a newer version.
        """
        if INDEX not in self._files:
            return self._of_whole_files()
        index = json.loads(self._files[INDEX].read_text(encoding="utf-8"))
        if index.get("version") != 1:
            raise InputError(f"{INDEX} has version {index.get('version')!r}; this program reads 1")
        tensors: dict[str, Any] = {}
        for name, described in index["tensors"].items():
            chunks = []
            for piece in described["pieces"]:
                offset = torch.Size(piece["offset"])
                chunks.append(ChunkStorageMetadata(offset, torch.Size(piece["shape"])))
                self._pieces[MetadataIndex(name, offset)] = Stored(piece["file"], piece["key"])
            dtype = getattr(torch, described["dtype"])
            tensors[name] = TensorStorageMetadata(TensorProperties(dtype), torch.Size(described["shape"]), chunks)
        return Metadata(tensors)

    def files_of(self, plan: LoadPlan) -> list[str]:
        """Names of the files that a plan reads from."""
        return sorted({self._pieces[item.storage_index].file for item in plan.items})

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Reads what a plan asks for, file by file; only the pages that are needed come from the disk."""
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_file.setdefault(self._pieces[item.storage_index].file, []).append(item)
        for name, items in by_file.items():
            with safe_open(self._files[name], framework="pt") as file:
                for item in items:
                    piece = file.get_slice(self._pieces[item.storage_index].key)
                    slices = tuple(
                        slice(at, at + length) for at, length in zip(item.storage_offsets, item.lengths, strict=True)
                    )
                    into = planner.resolve_tensor(item)
                    into.copy_(piece[slices])
                    planner.commit_tensor(item, into)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _of_whole_files(self) -> Metadata:
        tensors: dict[str, Any] = {}
        for file in (name for name in self._files if name.endswith(".safetensors")):
            with safe_open(self._files[file], framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118  (it is no mapping)
                    name = f"{file.removesuffix('.safetensors')}/{key}"
                    piece = opened.get_slice(key)
                    shape = torch.Size(piece.get_shape())
                    start = torch.Size([0] * len(shape))
                    chunk = ChunkStorageMetadata(start, shape)
                    dtype = opened.get_tensor(key).dtype  # mapped, not read
                    tensors[name] = TensorStorageMetadata(TensorProperties(dtype), shape, [chunk])
                    self._pieces[MetadataIndex(name, start)] = Stored(file, key)
        return Metadata(tensors)


def tensors_of(metadata: Metadata) -> dict[str, TensorStorageMetadata]:
    """What is saved, by its names: tensors alone, for nothing else is."""
    return cast(dict[str, TensorStorageMetadata], metadata.state_dict_metadata)


def read_tensors(files: Mapping[str, Path], part: str) -> dict[str, Tensor]:
    """The whole tensors of a part of a checkpoint, sharded or not, on the CPU; no process group is needed.

    Args:
        files: The local path of each of the checkpoint's files by name.
        part: Name of the part: ``model``, ``optimizer``, ``average``, ``spikes``.
    """
    reader = Reader(files)
    metadata = reader.read_metadata()
    tensors = {
        name.removeprefix(f"{part}/"): torch.empty(saved.size, dtype=saved.properties.dtype)
        for name, saved in tensors_of(metadata).items()
        if name.startswith(f"{part}/")
    }
    planner = PiecesLoadPlanner()
    planner.set_up_planner({f"{part}/{name}": pieces_of(tensor) for name, tensor in tensors.items()}, metadata)
    reader.read_data(planner.create_local_plan(), planner)
    return tensors
