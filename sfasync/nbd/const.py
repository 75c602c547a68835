"""The numbers of the NBD protocol.

Names and values are those of https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md; each group names its
section there. Limits that are ours and not the protocol's stand at the end.
"""

from typing import Final

# "Fixed newstyle negotiation", "Option haggling", "Transmission": magic numbers
NBDMAGIC: Final = 0x4E42444D41474943
IHAVEOPT: Final = 0x49484156454F5054
CLISERV_MAGIC: Final = 0x00420281861253  # "Oldstyle negotiation"
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF

DEFAULT_PORT: Final = 10809
"""The port that IANA gave to NBD (uri.md, "NBD URI authority")."""

# "Handshake flags" and "Client flags": bit for bit the same
FLAG_FIXED_NEWSTYLE: Final = 1 << 0
FLAG_NO_ZEROES: Final = 1 << 1

# "Transmission flags"
FLAG_HAS_FLAGS: Final = 1 << 0
FLAG_READ_ONLY: Final = 1 << 1
FLAG_SEND_FLUSH: Final = 1 << 2
FLAG_SEND_FUA: Final = 1 << 3
FLAG_ROTATIONAL: Final = 1 << 4
FLAG_SEND_TRIM: Final = 1 << 5
FLAG_SEND_WRITE_ZEROES: Final = 1 << 6
FLAG_SEND_DF: Final = 1 << 7
FLAG_CAN_MULTI_CONN: Final = 1 << 8
FLAG_SEND_CACHE: Final = 1 << 10
FLAG_SEND_FAST_ZERO: Final = 1 << 11

# "Option types"
OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_STARTTLS: Final = 5
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10

OPTION_NAMES: Final = {
    OPT_EXPORT_NAME: "NBD_OPT_EXPORT_NAME",
    OPT_ABORT: "NBD_OPT_ABORT",
    OPT_LIST: "NBD_OPT_LIST",
    OPT_STARTTLS: "NBD_OPT_STARTTLS",
    OPT_INFO: "NBD_OPT_INFO",
    OPT_GO: "NBD_OPT_GO",
    OPT_STRUCTURED_REPLY: "NBD_OPT_STRUCTURED_REPLY",
    OPT_LIST_META_CONTEXT: "NBD_OPT_LIST_META_CONTEXT",
    OPT_SET_META_CONTEXT: "NBD_OPT_SET_META_CONTEXT",
}

# "Option reply types"
REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_FLAG_ERROR: Final = 1 << 31
REP_ERR_UNSUP: Final = REP_FLAG_ERROR + 1
REP_ERR_POLICY: Final = REP_FLAG_ERROR + 2
REP_ERR_INVALID: Final = REP_FLAG_ERROR + 3
REP_ERR_PLATFORM: Final = REP_FLAG_ERROR + 4
REP_ERR_TLS_REQD: Final = REP_FLAG_ERROR + 5
REP_ERR_UNKNOWN: Final = REP_FLAG_ERROR + 6
REP_ERR_SHUTDOWN: Final = REP_FLAG_ERROR + 7
REP_ERR_BLOCK_SIZE_REQD: Final = REP_FLAG_ERROR + 8
REP_ERR_TOO_BIG: Final = REP_FLAG_ERROR + 9

REP_ERROR_NAMES: Final = {
    REP_ERR_UNSUP: "not supported",
    REP_ERR_POLICY: "forbidden by policy",
    REP_ERR_INVALID: "invalid request",
    REP_ERR_PLATFORM: "not supported on its platform",
    REP_ERR_TLS_REQD: "TLS required",
    REP_ERR_UNKNOWN: "unknown export",
    REP_ERR_SHUTDOWN: "shutting down",
    REP_ERR_BLOCK_SIZE_REQD: "block size negotiation required",
    REP_ERR_TOO_BIG: "request too big",
}

# "NBD_INFO information types"
INFO_EXPORT: Final = 0
INFO_NAME: Final = 1
INFO_DESCRIPTION: Final = 2
INFO_BLOCK_SIZE: Final = 3

# "Request types"
CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_CACHE: Final = 5
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7

COMMAND_NAMES: Final = {
    CMD_READ: "read",
    CMD_WRITE: "write",
    CMD_DISC: "disconnect",
    CMD_FLUSH: "flush",
    CMD_TRIM: "trim",
    CMD_CACHE: "cache",
    CMD_WRITE_ZEROES: "write zeroes",
    CMD_BLOCK_STATUS: "block status",
}

# "Command flags"
CMD_FLAG_FUA: Final = 1 << 0
CMD_FLAG_NO_HOLE: Final = 1 << 1
CMD_FLAG_DF: Final = 1 << 2
CMD_FLAG_REQ_ONE: Final = 1 << 3
CMD_FLAG_FAST_ZERO: Final = 1 << 4

# "Structured reply flags" and "Structured reply types"
REPLY_FLAG_DONE: Final = 1 << 0
REPLY_TYPE_NONE: Final = 0
REPLY_TYPE_OFFSET_DATA: Final = 1
REPLY_TYPE_OFFSET_HOLE: Final = 2
REPLY_TYPE_BLOCK_STATUS: Final = 5
REPLY_TYPE_FLAG_ERROR: Final = 1 << 15
REPLY_TYPE_ERROR: Final = REPLY_TYPE_FLAG_ERROR + 1
REPLY_TYPE_ERROR_OFFSET: Final = REPLY_TYPE_FLAG_ERROR + 2

# "Metadata contexts", `base:allocation`
BASE_ALLOCATION: Final = "base:allocation"
STATE_HOLE: Final = 1 << 0
STATE_ZERO: Final = 1 << 1

# "Error values"
ERROR_NAMES: Final = {
    1: "EPERM",
    5: "EIO",
    12: "ENOMEM",
    22: "EINVAL",
    28: "ENOSPC",
    75: "EOVERFLOW",
    95: "ENOTSUP",
    108: "ESHUTDOWN",
}
EIO: Final = 5
ENOMEM: Final = 12
EINVAL: Final = 22
ENOTSUP: Final = 95
ESHUTDOWN: Final = 108

# "String values" and "Block size constraints"
MAX_STRING: Final = 4096
MAX_MINIMUM_BLOCK_SIZE: Final = 1 << 16
NO_MAXIMUM_BLOCK_SIZE: Final = 0xFFFFFFFF
PORTABLE_PAYLOAD: Final = 32 << 20
"""The payload that every server takes that does not name a smaller maximum."""

# Ours: what a peer may make us hold
MAX_OPTION_REPLY: Final = 64 << 10
"""Bytes of one option reply."""
MAX_EXPORTS: Final = 10_000
"""Exports in one list."""
MAX_EXPORT_LIST: Final = 4 << 20
"""Bytes of one list: names and descriptions at their longest would be 80 MiB, and four times that as text."""
MAX_INFOS: Final = 64
"""Information replies to one option, and metadata contexts."""
MAX_SIZE: Final = (1 << 63) - 1
"""Bytes of an export: what offsets on this side can hold."""
MAX_BLOCK_STATUS: Final = 4 + (8 << 20)
"""Bytes of one block status payload: nbdkit sends up to 1 Mi extents of 8 bytes after the context's id."""
MAX_BLOCK_STATUS_RANGE: Final = (1 << 31) - (1 << 16)
"""Bytes of a disk asked about at once, as many as qemu asks about: servers have met that. The nbdkit 1.32 of Debian 12
aborts near 4 GiB (CVE-2025-47711).
"""
