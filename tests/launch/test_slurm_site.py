"""The facts of a SLURM site."""

from slurm_outputs import site


def test_site_answers_from_its_settings() -> None:
    found = site()
    assert (found.name, found.version, found.seconds("KillWait")) == ("lab", "22.05.8", 30)
    assert found.seconds("MinJobAge") is None
    assert found.enforces("limits")
    assert not found.enforces("wckeys")
    assert not site({"AccountingStorageEnforce": "none"}).enforces("associations")
