import pytest

from modelcore import launch


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (3, 4, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, (0, 1, 0)),
        ({"RANK": "2"}, (0, 1, 0)),  # somebody else's variable
        ({"WORLD_SIZE": "2"}, (0, 1, 0)),
    ],
)
def test_a_process_learns_its_place_from_what_torchrun_tells_it(monkeypatch, environment, expected):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (launch.rank(), launch.world_size(), launch.local_rank()) == expected
