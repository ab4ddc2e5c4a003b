"""Tokenizers: given files, damaged ones, and one that is trained."""


import pytest

from ado_megatron import cli
from ado_megatron.errors import UserError
from ado_megatron.prepare.tokenizer import TokenizerFile, load, train_sentencepiece
from tests.kit.documents import texts, write_jsonl


def test_damaged_tokenizers_are_refused(tmp_path, capsys):
    good = write_jsonl(tmp_path / "good.jsonl", texts(9))
    for name in ("bad.model", "bad.json"):
        (tmp_path / name).write_bytes(b"nonsense")
        line = ["prepare", "--out", str(tmp_path / "out"), "--domain", f"a={good}", "--tokenizer", str(tmp_path / name)]
        assert cli.main(line) == 2
        assert "tokenizer" in capsys.readouterr().err
    with pytest.raises(UserError, match="no end-of-document token <eod>"):
        (tmp_path / "fine.model").write_bytes(train_sentencepiece(texts(60), 320).data)
        load(str(tmp_path / "fine.model"), "<eod>")


def test_a_vocabulary_larger_than_the_text_allows_is_said():
    with pytest.raises(UserError, match="smaller --vocab-size"):
        train_sentencepiece(["abc"] * 10, 5000)


def test_a_lone_surrogate_from_json_does_not_stop_the_run(tokenizer):
    assert tokenizer.open().encode("ab\ud800c").tolist() == tokenizer.open().encode("ab?c").tolist()


def test_a_hugging_face_file_encodes_as_its_own_library_does(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    options = dict(vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False, initial_alphabet=alphabet)
    trainer = tokenizers.trainers.BpeTrainer(**options)
    made.train_from_iterator(texts(20), trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    opened = load(str(tmp_path)).open()
    assert opened.encode(texts(3)[2]).tolist() == [*made.encode(texts(3)[2]).ids, made.token_to_id("<|endoftext|>")]
    assert opened.vocab_size == 300
    with pytest.raises(UserError, match="none of <eod>"):
        TokenizerFile("huggingface", (tmp_path / "tokenizer.json").read_bytes(), "<eod>").open()
