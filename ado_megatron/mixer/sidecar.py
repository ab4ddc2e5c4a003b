"""The sidecar: all that the mixture needs to go on, in one file that is either the old one or the new one.

Layout: one line of magic, one line of JSON header, then an npz payload. The header carries the format's version, the
payload's size and a SHA-256 over metadata and payload, so a truncated or altered file is recognised and refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from typing import Any

import numpy as np

from ado_megatron.errors import SidecarError, UserError
from ado_megatron.files import atomic_write, open_regular
from ado_megatron.npz import read_npz

MAGIC = b"ado-megatron sidecar\n"
VERSION = 1
PACKED_BYTES = 32 << 20  # of arrays that are compressed; of more, which losses of many domains are, it takes seconds
TOKEN_CHARS = 16  # of the digest, as a checkpoint keeps it


def encode_sidecar(meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    """The file's bytes. meta: JSON values. arrays: plain numeric or boolean arrays."""
    payload = io.BytesIO()
    save = np.savez_compressed if sum(a.nbytes for a in arrays.values()) <= PACKED_BYTES else np.savez
    save(payload, **arrays)  # type: ignore[arg-type]  # numpy's stub takes names for its own options
    meta_json = json.dumps(meta, sort_keys=True)
    data = payload.getvalue()
    header = {
        "version": VERSION,
        "payload_bytes": len(data),
        "sha256": _digest(meta_json, data),
        "meta": meta_json,
    }
    return MAGIC + json.dumps(header).encode() + b"\n" + data


def write_sidecar(path: str | os.PathLike, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """Write the sidecar atomically; returns its token, a digest of its content. Raises OSError."""
    data = encode_sidecar(meta, arrays)
    atomic_write(path, data)
    return json.loads(data.split(b"\n", 2)[1])["sha256"][:TOKEN_CHARS]


def read_sidecar(path: str | os.PathLike, token: str | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(meta, arrays) of a sidecar. Raises SidecarError, one sentence, for anything that cannot be trusted.

    token: what `write_sidecar` returned, as the checkpoint beside keeps it (None: it keeps none).
    """
    try:
        with open_regular(path) as file:
            data = file.read()
    except UserError as error:
        raise SidecarError(str(error)) from error
    except OSError as error:
        raise SidecarError(f"the sidecar {path} cannot be read ({error.strerror}); give the path of one") from error
    if not data.startswith(MAGIC):
        raise SidecarError(f"{path} is not an ado-megatron sidecar, or its beginning is damaged; use an older one")
    try:
        end = data.index(b"\n", len(MAGIC))
        header = json.loads(data[len(MAGIC) : end])
        version, size, digest, meta_json = (header[k] for k in ("version", "payload_bytes", "sha256", "meta"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SidecarError(f"the header of the sidecar {path} is damaged; use an older one") from error
    if [type(value) for value in (version, size, digest, meta_json)] != [int, int, str, str]:
        raise SidecarError(f"the header of the sidecar {path} is damaged; use an older one")
    if version != VERSION:
        raise SidecarError(
            f"the sidecar {path} has format {version}, this version of ado_megatron reads format {VERSION}; "
            "resume with the version that wrote it"
        )
    payload = data[end + 1 :]
    if len(payload) != size:
        raise SidecarError(f"the sidecar {path} is truncated ({len(payload)} of {size} bytes); use an older one")
    if _digest(meta_json, payload) != digest:
        raise SidecarError(f"the sidecar {path} was altered (its digest does not match); use an older one")
    if token is not None and digest[:TOKEN_CHARS] != token:
        raise SidecarError(
            f"the sidecar {path} was not written with this checkpoint (it is {digest[:TOKEN_CHARS]}, the checkpoint "
            f"names {token}); another run wrote here, or a file was copied: use the sidecar that belongs to it"
        )
    try:
        meta = json.loads(meta_json)
        arrays = read_npz(io.BytesIO(payload))
    except (ValueError, RecursionError) as error:
        raise SidecarError(f"the content of the sidecar {path} is damaged ({error}); use an older one") from error
    if not isinstance(meta, dict):
        raise SidecarError(f"the content of the sidecar {path} is damaged (no object of metadata); use an older one")
    return meta, arrays


def _digest(meta_json: str, payload: bytes) -> str:
    digest = hashlib.sha256(meta_json.encode(errors="surrogatepass") + b"\n")
    digest.update(payload)
    return digest.hexdigest()
