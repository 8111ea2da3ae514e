"""Worker processes: a crash or hang is one clip's alone, and nothing outlives its owner."""

import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
import soundfile

from earwitness.audio.pool import DecodePool
from earwitness.audio.probe import ProbedClip
from earwitness.engine.guardian import descendants
from earwitness.errors import BadRecordError
from earwitness.records import Reason, Rejection, Stage
from earwitness.settings import AudioSettings

POLICY = AudioSettings(max_duration_s=30)


@pytest.fixture(scope="module")
def pool():
    with DecodePool(2, timeout_s=20) as opened:
        yield opened


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "clip"
    wave = 0.4 * np.sin(np.arange(44_100) / 10)
    soundfile.write(str(path), wave, 44_100, format="FLAC")
    return path


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_probing_and_decoding_answer_from_workers(pool, clip, tmp_path):
    assert pool.probe(clip).result().duration_s == 1.0
    assert pool.decode(clip, tmp_path / "out.wav", POLICY).result().duration_s == 1.0
    assert soundfile.info(str(tmp_path / "out.wav")).samplerate == 16_000


def test_a_rejection_comes_back_as_it_was_raised(pool, tmp_path):
    (tmp_path / "page.wav").write_text("<html></html>")
    error = pool.probe(tmp_path / "page.wav").exception()
    assert isinstance(error, BadRecordError)
    assert error.rejection.reason is Reason.NOT_AUDIO


def test_a_crash_costs_one_clip_and_no_other(pool, clip):
    before = [pool.probe(clip) for _ in range(20)]
    crash = pool.submit(ctypes.string_at, 0)
    after = [pool.probe(clip) for _ in range(20)]
    error = crash.exception(60)
    assert isinstance(error, BadRecordError)
    assert (error.rejection.stage, error.rejection.reason) == (Stage.DECODE, Reason.DECODER_CRASH)
    assert all(job.result(60).duration_s == 1.0 for job in before + after)


def _crash_once(mark: Path) -> str:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "answered"


def test_a_worker_killed_from_outside_costs_no_clip(pool, tmp_path):
    assert pool.submit(_crash_once, tmp_path / "mark").result(60) == "answered"


def test_a_clip_that_takes_too_long_is_given_up(clip):
    with DecodePool(1, timeout_s=0.5) as pool:
        pool.probe(clip).exception(60)
        hang = pool.submit(time.sleep, 60)
        error = hang.exception(30)
        assert isinstance(error, BadRecordError)
        assert error.rejection.reason is Reason.DECODE_TIMEOUT
        assert pool.probe(clip).result(60).duration_s == 1.0


def test_several_clips_come_back_in_order_with_rejections_in_their_places(pool, clip, tmp_path):
    (tmp_path / "page.wav").write_text("<html></html>")
    found = pool.probe_each([clip, tmp_path / "page.wav", clip]).result(60)
    assert [type(one) for one in found] == [ProbedClip, Rejection, ProbedClip]
    assert found[1].reason is Reason.NOT_AUDIO
    files = [(clip, tmp_path / "a.wav"), (tmp_path / "page.wav", tmp_path / "b.wav")]
    heard, refused = pool.decode_each(files, POLICY).result(60)
    assert heard.sounds[0].heard_s == soundfile.info(str(tmp_path / "a.wav")).duration == 1.0
    assert refused.reason is Reason.NOT_AUDIO
    assert not (tmp_path / "b.wav").exists()


def _crash_at_two(number: int) -> int:
    if number == 2:
        ctypes.string_at(0)
    return number


def test_a_crash_among_several_clips_costs_one_of_them(pool):
    found = pool.submit_each(_crash_at_two, [(1,), (2,), (3,)]).result(60)
    assert (found[0], found[2]) == (1, 3)
    assert found[1].reason is Reason.DECODER_CRASH


def test_a_clip_among_several_that_takes_too_long_is_given_up_alone():
    with DecodePool(1, timeout_s=1.0) as pool:
        pool.submit(int).result(60)
        found = pool.submit_each(time.sleep, [(0,), (60,), (0,)]).result(60)
        assert (found[0], found[2]) == (None, None)
        assert found[1].reason is Reason.DECODE_TIMEOUT


def test_several_slow_clips_may_take_longer_than_one_is_given():
    with DecodePool(1, timeout_s=2.5) as pool:
        pool.submit(int).result(60)
        assert pool.submit_each(time.sleep, [(0.6,)] * 5).result(60) == [None] * 5


def test_an_error_that_is_no_clips_own_fails_all_of_them(pool):
    assert isinstance(pool.submit_each(bytes, [(1,), (8 * 2**30,)]).exception(60), MemoryError)


def test_memory_is_bounded(pool):
    assert isinstance(pool.submit(bytes, 8 * 2**30).exception(60), MemoryError)


def test_closing_stops_work_at_once_and_leaves_no_process(clip):
    before = descendants(os.getpid())
    pool = DecodePool(2)
    pool.probe(clip).result(60)
    jobs = [pool.submit(time.sleep, 60) for _ in range(4)]
    time.sleep(0.2)
    started = time.monotonic()
    pool.close()
    assert time.monotonic() - started < 5
    assert all(job.done() for job in jobs)
    assert all(job.cancelled() or isinstance(job.exception(), CancelledError) for job in jobs)
    left = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(os.getpid()) - before]
    # Python's own tracker of shared resources stays until its process ends
    assert [line for line in left if b"resource_tracker" not in line] == []


OWNER = """
import time
from earwitness.audio.pool import DecodePool
pool = DecodePool(2)
for _ in range(2):
    pool.submit(time.sleep, 300)
time.sleep(300)
"""


def test_every_worker_dies_with_its_owner(tmp_path):
    script = tmp_path / "owner.py"
    # no "if __name__" guard: a worker that imported its owner's main module would start a pool too
    script.write_text(OWNER)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    owner = subprocess.Popen([sys.executable, str(script)], env=environment)
    try:
        deadline = time.monotonic() + 60
        # the fork server, Python's resource tracker and two workers
        while len(descendants(owner.pid)) < 4 and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        family = descendants(owner.pid)
        assert len(family) == 4
    finally:
        owner.kill()
        owner.wait()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in family) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [pid for pid in family if alive(pid)] == []


def test_damaged_clips_end_as_rejections_and_never_as_anything_else(pool, tmp_path):
    dice = random.Random(7)  # noqa: S311 - the same damage every time
    wave = 0.4 * np.sin(np.arange(16_000) / 10)
    jobs = []
    for kind in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF", "AU"):
        whole = tmp_path / kind
        soundfile.write(str(whole), wave, 16_000, format=kind)
        for number in range(25):
            data = bytearray(whole.read_bytes())
            for _ in range(dice.randint(1, 20)):
                data[dice.randrange(min(len(data), dice.choice([64, 10**9])))] = dice.randrange(256)
            path = tmp_path / f"{kind}-{number}"
            path.write_bytes(data[: dice.choice([len(data), dice.randrange(len(data))])])
            jobs.append(pool.probe(path))
            jobs.append(pool.decode(path, path.with_suffix(".wav"), POLICY))
    errors = [job.exception(60) for job in jobs]
    assert {type(error) for error in errors} <= {type(None), BadRecordError}
    reasons = {error.rejection.reason for error in errors if error}
    assert Reason.DECODE_TIMEOUT not in reasons
