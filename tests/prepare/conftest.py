"""One trained tokenizer for all."""

import pytest

from ado_megatron.prepare.tokenizer import train_sentencepiece
from tests.kit.documents import texts


@pytest.fixture(scope="package")
def tokenizer():
    return train_sentencepiece(texts(60), 320)
