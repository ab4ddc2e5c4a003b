"""What is held out: a function of the documents alone, at least so many tokens, and always something to train on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ado_megatron.errors import UserError
from ado_megatron.prepare.documents import in_validation, place
from ado_megatron.prepare.domain_writer import MOST, DomainWriter, Split


class Builder:
    """Keeps what a file would hold."""

    def __init__(self):
        self.documents, self.data_file = [], None

    def add_document(self, ids, lengths):
        self.documents.append(ids)

    def finalize(self, path):
        pass


def split_up(documents, fraction, floor, dedupe=True):
    """(train, validation) as sorted lists of digests; a document's first token is its digest."""
    train, valid = Builder(), Builder()
    writer = DomainWriter("d", Split("t", train), Split("v", valid), fraction, dedupe, floor)
    for key, size in documents:
        writer.add(key, np.full(size, key))
    writer.finish()
    assert writer.train.tokens + writer.valid.tokens == sum(map(len, train.documents + valid.documents))
    return [sorted(int(ids[0]) for ids in side.documents) for side in (train, valid)]


def reference(documents, fraction, floor):
    """The same by sorting all documents at once."""
    documents = sorted(dict(documents).items(), key=lambda item: place(item[0]))
    floor = max(1, min(floor, int(MOST * sum(size for _, size in documents))))
    valid, tokens = [], 0
    for key, size in documents[:-1]:
        if in_validation(key, fraction) or tokens < floor:
            valid.append(key)
            tokens += size
    last, size = documents[-1]
    train = [key for key, _ in documents if key not in valid]
    if in_validation(last, fraction) and len(train) > 1:
        valid, train = [*valid, last], [key for key in train if key != last]
    return [sorted(train), sorted(valid)]


DOCUMENTS = st.dictionaries(st.integers(0, 2**31), st.integers(1, 60), min_size=2, max_size=40)


@given(DOCUMENTS, st.sampled_from([1e-9, 0.05, 0.5, 1 - 1e-9]), st.integers(0, 400), st.randoms())
def test_the_held_out_are_the_first_in_order_whatever_the_order_of_the_input(documents, fraction, floor, random):
    items = list(documents.items())
    expected = reference(items, fraction, floor)
    assert split_up(items, fraction, floor) == expected
    random.shuffle(items)
    assert split_up(items, fraction, floor) == expected


@given(DOCUMENTS, st.integers(0, 400))
def test_copies_that_are_kept_never_stand_on_both_sides(documents, floor):
    items = [*documents.items(), *documents.items()]
    train, valid = split_up(items, 0.05, floor, dedupe=False)
    assert not set(train) & set(valid) and len(train) + len(valid) == len(items) and train and valid


def test_a_rare_domain_gets_the_tokens_that_were_asked_for():
    documents = [(key, 100) for key in range(1, 201)]
    few = split_up(documents, 0.01, 0)[1]
    enough = split_up(documents, 0.01, 1500)[1]
    assert len(few) <= 5 and set(few) <= set(enough) and len(enough) == 15
    assert len(split_up(documents, 0.01, 10**6)[1]) == 20  # at most a tenth of the domain


def test_a_single_document_is_refused():
    with pytest.raises(UserError, match="one document only"):
        split_up([(5, 3)], 0.1, 100)
    with pytest.raises(UserError, match="there is no text in it"):
        split_up([], 0.1, 100)
