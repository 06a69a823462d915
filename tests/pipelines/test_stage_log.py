"""Of what the local runner prints, the terminal shows the stages' own lines, the file everything."""

import io

from pipelines.stage_log import StageLog


def logged(*chunks):
    file, terminal = io.StringIO(), io.StringIO()
    log = StageLog(file, terminal)
    for chunk in chunks:
        log.write(chunk)
    return log, file.getvalue(), terminal.getvalue()


def test_stage_lines_reach_the_terminal_and_kfps_own_only_the_file():
    _, file, terminal = logged(
        "08:39:37.120 - INFO - Executing task\n",
        "    ",
        "2026-11-23T08:39:38Z INFO stage=pretrain status=started\n",
        "    [KFP Executor] chatter\n",
    )
    assert terminal == "2026-11-23T08:39:38Z INFO stage=pretrain status=started\n"
    assert "chatter" in file
    assert "Executing" in file


def test_a_line_that_comes_in_pieces_is_shown_once_and_whole():
    _, _, terminal = logged("    2026-11-23T08:39:38Z WAR", "NING half", " and half\n")
    assert terminal == "2026-11-23T08:39:38Z WARNING half and half\n"


def test_the_failure_is_the_stages_own_message():
    log, *_ = logged("    2026-11-23T08:39:38Z ERROR stage=pretrain status=failed\n", "    error: too small\n")
    assert log.failure() == "stage pretrain failed: too small"


def test_a_failure_without_a_message_shows_the_end_of_what_was_printed():
    log, *_ = logged("    Traceback (most recent call last):\n", "    KeyError: 'x'\n")
    assert log.failure().endswith("Traceback (most recent call last):\nKeyError: 'x'")


def test_a_failure_before_or_between_stages_is_not_put_on_the_one_that_was_done():
    log, *_ = logged("    2026-11-23T08:39:38Z INFO stage=pretrain status=done\n", "    no space for a container\n")
    assert log.failure().startswith("the pipeline failed:\n")


def test_a_stage_that_ends_without_a_word_is_named():
    log, *_ = logged("    2026-11-23T08:39:38Z INFO stage=pretrain status=started\n", "    Killed\n")
    assert log.failure().startswith("stage pretrain failed:\n")
    assert log.failure().endswith("\nKilled")
