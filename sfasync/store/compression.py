"""zstd for one blob at a time, into memory that is there already.

What Python offers puts its results into new memory, and decompresses by way of a window into blocks that it joins: two
copies of each chunk, and pages to fault in. The library under it has calls that need neither (zstd.h, "Simple Core API"
and "Advanced compression API", stable since 1.4), and their names can be seen in the module that Python loads. `Direct`
calls them, without Python's lock: a backup takes 4 % less CPU, a restore 10 %. Where the names cannot be seen,
`Portable` does the same with what Python offers.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
import weakref
from collections.abc import Callable, Mapping
from functools import cache
from typing import Protocol

from ..foreign import POINTER, SIZE, Memory, call
from ..interfaces import Buffer
from .scratch import Scratch
from .tree import is_zero

if sys.version_info >= (3, 14):
    from compression import zstd

    _EXTENSION = "_zstd"
else:
    from backports import zstd

    _EXTENSION = "backports.zstd._zstd"

Parameter = zstd.CompressionParameter
CompressionError = zstd.ZstdError

_FRAME_HEADER = 18  # the longest there is (RFC 8878, 3.1.1.1)
_LARGEST_WINDOW = 24  # bits; of those that need memory for a window


class Codec(Protocol):
    """Makes and opens frames of zstd. Belongs to one thread."""

    def compress(self, data: Buffer) -> Buffer:
        """A frame that holds the data and tells its size; valid until the next call of this codec.

        Raises:
            CompressionError: It could not be made.
            MemoryError: There is no memory for it.
        """
        ...

    def gives_back(self, frame: Buffer, data: Buffer, *, before: int = 0, after: int = 0) -> bool:
        """Whether a frame decompresses to `before` zeros, the data and `after` zeros; errors as of `decompress`."""
        ...

    def decompress(self, frame: Buffer, buffer: memoryview) -> None:
        """Fill the buffer with what one frame holds, which must be as much.

        Memory is bounded by the buffer, whatever the frame claims. After an error the buffer's content is undefined.

        Raises:
            CompressionError: The bytes are not one frame of that much.
            MemoryError: There is no memory to decompress in, which says nothing about the bytes.
        """
        ...


def codec(parameters: Mapping[int, int]) -> Codec:
    """The best codec that can be had here; frames and errors are those of any other."""
    library = _library()
    return Portable(parameters) if library is None else Direct(library, parameters)


class Portable:
    """A codec of what Python offers.

    Args:
        parameters: How it compresses.
    """

    def __init__(self, parameters: Mapping[int, int]) -> None:
        self._compressor = zstd.ZstdCompressor(options=dict(parameters))

    def compress(self, data: Buffer) -> Buffer:
        try:
            return self._compressor.compress(data, zstd.ZstdCompressor.FLUSH_FRAME)
        except CompressionError as error:
            raise _failure(str(error)) from error

    def gives_back(self, frame: Buffer, data: Buffer, *, before: int = 0, after: int = 0) -> bool:
        content = self._content(frame, before + len(data) + after)
        # `startswith` takes any buffer and is one memcmp; comparing a memoryview goes element by element.
        return content.startswith(data, before) and _are_zeros(content, before, after)

    def decompress(self, frame: Buffer, buffer: memoryview) -> None:
        buffer[:] = self._content(frame, len(buffer))

    def _content(self, frame: Buffer, length: int) -> bytes:
        try:
            _check_size(zstd.get_frame_info(frame[:_FRAME_HEADER]).decompressed_size, length)
            decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _LARGEST_WINDOW})
            data = decompressor.decompress(frame, max_length=length)
        except CompressionError as error:
            raise _failure(str(error)) from error
        if len(data) != length or not decompressor.eof or decompressor.unused_data:
            raise _not_one_frame(length)
        return data


class Direct:
    """A codec of the library's own calls.

    Args:
        library: The library.
        parameters: How it compresses.
    """

    def __init__(self, library: _Library, parameters: Mapping[int, int]) -> None:
        self._library = library
        self._compression = self._owned(library.new_compression(), library.free_compression)
        self._decompression = self._owned(library.new_decompression(), library.free_decompression)
        for parameter, value in parameters.items():
            library.checked(library.set_parameter(self._compression, parameter, value))
        self._frame = Scratch()
        self._content = Scratch()

    def _owned(self, context: int | None, free: Callable[[int], int]) -> int:
        """A context of the library that goes with this codec."""
        if context is None:
            raise MemoryError("zstd gets no memory for a context")
        weakref.finalize(self, free, context).atexit = False
        return context

    def compress(self, data: Buffer) -> Buffer:
        library = self._library
        frame = self._frame.take(library.bound(len(data)))
        with Memory(data) as source, Memory(frame, writable=True) as target:
            length = library.compress(self._compression, target.address, target.length, source.address, source.length)
        return frame[: library.checked(length)]

    def gives_back(self, frame: Buffer, data: Buffer, *, before: int = 0, after: int = 0) -> bool:
        content = self._content.take(before + len(data) + after)
        self.decompress(frame, content)
        with Memory(content) as found, Memory(data) as wanted:
            difference: int = self._library.compare(found.address + before, wanted.address, wanted.length)
        return difference == 0 and _are_zeros(content, before, after)

    def decompress(self, frame: Buffer, buffer: memoryview) -> None:
        library = self._library
        with Memory(frame) as source, Memory(buffer, writable=True) as target:
            size = library.content_size(source.address, source.length)
            _check_size(size if size < _UNKNOWN_SIZE else None, target.length)
            # Several frames, one after the other, would be opened together.
            if library.checked(library.frame_length(source.address, source.length)) != source.length:
                raise _not_one_frame(target.length)
            length = library.decompress(
                self._decompression, target.address, target.length, source.address, source.length
            )
            if library.checked(length) != target.length:
                raise _not_one_frame(target.length)


def _are_zeros(content: Buffer, first: int, last: int) -> bool:
    """Whether so many bytes at both ends are zeros."""
    view = memoryview(content)
    return is_zero(view[:first]) and is_zero(view[len(view) - last :])


def _check_size(claimed: int | None, length: int) -> None:
    if claimed is None:
        raise CompressionError("it does not tell its size")
    if claimed != length:
        raise CompressionError(f"it says that it has {claimed} bytes, not {length}")


def _not_one_frame(length: int) -> CompressionError:
    return CompressionError(f"it is not one frame of {length} bytes")


def _failure(what: str) -> CompressionError | MemoryError:
    """The error for what the library says (zstd_errors.h: a lack of memory has no other name than its text)."""
    return MemoryError(what) if "not enough memory" in what else CompressionError(what)


# --- the library ------------------------------------------------------------------------------------------------------

_UNKNOWN_SIZE = (1 << 64) - 2  # and the number after it: not a frame, or one that does not tell (zstd.h)


class _Library:
    """The calls of zstd that are needed. Those that take long are made without Python's lock, the others with it: who
    gives it away for a moment may wait long until it comes back.

    Args:
        path: The library, or what is linked with it.

    Raises:
        AttributeError: One of them cannot be seen.
        OSError: There is no library.
    """

    def __init__(self, path: str) -> None:
        long, short = ctypes.CDLL(path), ctypes.PyDLL(path)
        ends = (POINTER, SIZE, POINTER, SIZE)
        self.new_compression = call(short, "ZSTD_createCCtx", POINTER)
        self.new_decompression = call(short, "ZSTD_createDCtx", POINTER)
        self.free_compression = call(short, "ZSTD_freeCCtx", SIZE, POINTER)
        self.free_decompression = call(short, "ZSTD_freeDCtx", SIZE, POINTER)
        self.set_parameter = call(short, "ZSTD_CCtx_setParameter", SIZE, POINTER, ctypes.c_int, ctypes.c_int)
        self.bound = call(short, "ZSTD_compressBound", SIZE, SIZE)
        self.compress = call(long, "ZSTD_compress2", SIZE, POINTER, *ends)
        self.decompress = call(long, "ZSTD_decompressDCtx", SIZE, POINTER, *ends)
        self.content_size = call(short, "ZSTD_getFrameContentSize", ctypes.c_ulonglong, POINTER, SIZE)
        self.frame_length = call(short, "ZSTD_findFrameCompressedSize", SIZE, POINTER, SIZE)
        self.compare = call(ctypes.CDLL(None), "memcmp", ctypes.c_int, POINTER, POINTER, SIZE)
        self._is_error = call(short, "ZSTD_isError", ctypes.c_uint, SIZE)
        self._error_name = call(short, "ZSTD_getErrorName", ctypes.c_char_p, SIZE)

    def checked(self, result: int) -> int:
        """A result that is no error.

        Raises:
            CompressionError, MemoryError: It is one.
        """
        if self._is_error(result):
            raise _failure(self._error_name(result).decode())
        return result


@cache
def _library() -> _Library | None:
    """The library that Python's own module uses; None where its calls cannot be reached."""
    try:
        path = importlib.import_module(_EXTENSION).__file__  # None where it is part of the interpreter
        return _Library(path) if path is not None else None
    except (ImportError, AttributeError, OSError):
        return None
