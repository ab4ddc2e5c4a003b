"""The text file for Prometheus' node exporter, read back by the package's own parser."""

import importlib.util

import pytest

from ado_megatron.errors import UserError
from ado_megatron.measure.board_names import TABLE, by_domain, of_run
from ado_megatron.measure.prometheus import TextFile, check_prometheus


def test_what_is_missing_is_said_before_anything_starts(tmp_path, monkeypatch):
    check_prometheus(None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    check_prometheus(str(tmp_path / "ado.prom"))
    with pytest.raises(UserError, match="--ado-prometheus .*: there is no directory .*nowhere; make it"):
        check_prometheus(str(tmp_path / "nowhere" / "ado.prom"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package prometheus_client; `pip install prometheus_client`"):
        check_prometheus(str(tmp_path / "ado.prom"))


def test_the_file_holds_the_newest_values_under_the_names_of_the_table(tmp_path):
    pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    file = TextFile(str(tmp_path / "ado.prom"), "first")
    file.write(by_domain("weight", {"wiki": 0.25, 'a/"b"': 0.75}), 10)
    file.write(by_domain("weight", {"wiki": 0.5}) | of_run(target_loss=2.5), 20)
    families = {one.name: one for one in text_string_to_metric_families((tmp_path / "ado.prom").read_text())}
    assert {name: [(sample.labels, sample.value) for sample in one.samples] for name, one in families.items()} == {
        "ado_weight": [({"run": "first", "domain": "wiki"}, 0.5), ({"run": "first", "domain": 'a/"b"'}, 0.75)],
        "ado_target_loss": [({"run": "first"}, 2.5)],
        "ado_step": [({"run": "first"}, 20.0)],
    }
    weight = next(row for row in TABLE if row.name == "ado/weight/DOMAIN")
    assert families["ado_weight"].type == "gauge" and families["ado_weight"].documentation == weight.meaning
    assert [path.name for path in tmp_path.iterdir()] == ["ado.prom"]


def test_every_name_of_the_table_can_be_written(tmp_path):
    pytest.importorskip("prometheus_client")
    names = {row.name.replace("DOMAIN", "wiki"): 1.0 for row in TABLE}
    TextFile(str(tmp_path / "ado.prom"), "first").write(names, 1)
    lines = [line for line in (tmp_path / "ado.prom").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == len(TABLE) + 1
    with pytest.raises(ValueError, match="is not in the table"):
        TextFile(str(tmp_path / "ado.prom"), "first").write({"ado/wieght/wiki": 1.0}, 1)
