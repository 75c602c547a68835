"""The store that other tests rely on keeps the contract."""

from __future__ import annotations

import pytest

from ..contracts.object_store import ObjectStoreCase, ObjectStoreContract
from .memory import MemoryStore


class TestMemoryStore(ObjectStoreContract):
    @pytest.fixture
    def case(self) -> ObjectStoreCase:
        store = MemoryStore()
        return ObjectStoreCase(store, store)
