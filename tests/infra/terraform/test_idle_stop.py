"""When the machine stops itself, and when not."""

import pytest

MINUTE = 60


@pytest.fixture
def idle(machine):
    """A machine that nothing uses, one hour after its start."""
    machine.environment |= {"GPT_IDLE_MINUTES": "60", "GPT_RUN": str(machine.folder / "run")}
    machine.environment["GPT_PROC"] = str(machine.folder / "proc")
    (machine.folder / "proc").mkdir()
    is_active = "echo active"
    machine.has("systemctl", f'[ "$1" = is-active ] && {is_active}; exit 0')
    machine.has("pgrep", "exit 1")
    machine.has("who")
    machine.has("shutdown")
    at(machine, 60 * MINUTE)
    return machine


def at(machine, seconds, load="0.00 0.05 0.10"):
    (machine.folder / "proc" / "uptime").write_text(f"{seconds}.42 {seconds}.00\n")
    (machine.folder / "proc" / "loadavg").write_text(f"{load} 1/100 4242\n")


def look(machine):
    """What it said, and whether it stopped the machine."""
    before = len(machine.calls)
    done = machine.run("idle-stop.sh")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip(), "shutdown -h now" in machine.calls[before:]


def test_after_an_hour_without_use_it_stops(idle):
    assert look(idle) == ("idle for 60 minutes: stopping the machine", True)


def test_before_that_it_waits(idle):
    at(idle, 60 * MINUTE - 1)
    assert look(idle) == ("idle for 59 of 60 minutes", False)


USES = {
    "a pipeline": (
        "systemctl",
        '[ "$1" = list-units ] && echo "gpt-pipeline-night.service loaded active running"',
        "in use: gpt-pipeline-night.service is running",
    ),
    "a session or a tunnel": ("pgrep", "echo 4711", "in use: a Session Manager session is open"),
    "a login": ("who", 'echo "root tty1 2026-11-24 12:00"', "in use: somebody is logged in"),
    "an installation": (
        "systemctl",
        '[ "$1" = is-active ] && echo activating; exit 0',
        "in use: the installation is under way",
    ),
}


@pytest.mark.parametrize("use", USES)
def test_use_keeps_it_on_and_the_hour_begins_anew_when_it_ends(idle, use):
    program, does, said = USES[use]
    before = (idle.folder / "bin" / program).read_text()
    idle.has(program, does)
    at(idle, 500 * MINUTE)
    assert look(idle) == (said, False)
    (idle.folder / "bin" / program).write_text(before)
    at(idle, 530 * MINUTE)
    assert look(idle) == ("idle for 30 of 60 minutes", False)
    at(idle, 560 * MINUTE)
    assert look(idle)[1]


@pytest.mark.parametrize(
    ("load", "stops"), [("5.00 0.19 0.00", True), ("0.00 0.20 0.00", False), ("0.0 1.70 1.0", False)]
)
def test_load_of_the_last_five_minutes_is_use(idle, load, stops):
    at(idle, 90 * MINUTE, load)
    said, stopped = look(idle)
    assert stopped is stops
    assert ("the load is" in said) is not stops


def test_the_pipelines_units_are_asked_for_by_the_name_that_the_command_gives_them(idle):
    look(idle)
    asked = next(call for call in idle.calls if "list-units" in call)
    assert asked.endswith("gpt-pipeline-*")
    assert "activating" in asked


def test_if_it_cannot_be_told_whether_a_pipeline_runs_the_machine_stays_on(idle):
    idle.has("systemctl", "echo 'Failed to connect to bus' >&2; exit 1")
    done = idle.run("idle-stop.sh")
    assert done.returncode != 0
    assert "shutdown -h now" not in idle.calls
