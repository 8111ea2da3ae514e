"""No setting carries a credential, and no error prints one."""

from __future__ import annotations

import pickle

import pytest

from earwitness.builds.prepare import resolve_settings
from earwitness.credentials import check_no_secret
from earwitness.errors import SettingsError, StorageUnavailableError
from earwitness.settings import BuildSettings

SIGNED = "https://b.s3.amazonaws.com/m.jsonl?X-Amz-Expires=60&X-Amz-Signature=hidden"


@pytest.mark.parametrize(
    "uri",
    [
        "https://me:hidden@host/v1",
        "https://hidden@host/v1",
        "s3://AKIA:hid/den@bucket/out",
        "sftp://me:hidden@host/out",
        SIGNED,
        "https://b.s3.amazonaws.com/out?AWSAccessKeyId=hidden&Expires=1",
        "https://h/out?a=b&signature=hidden",
    ],
)
def test_an_address_with_a_credential_is_refused_and_not_repeated(uri: str):
    with pytest.raises(SettingsError, match=r"engine\.url.*environment.*Prefect block") as refused:
        check_no_secret(uri, "engine.url")
    assert "hid" not in str(refused.value)
    assert "hid" not in str(StorageUnavailableError(f"{uri}: it is down"))


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "/data/a:b@c?Signature=x.jsonl",
        "s3://bucket/a:b@c.jsonl",
        "http://host:8000/v1@2",
        "http://[::1]:8000/v1",
        "sftp://me@host/out",
        "abfs://container@account.dfs.core.windows.net/out",
        "https://host/out?version=3",
        "Qwen/Qwen2-Audio-7B-Instruct",
    ],
)
def test_an_address_without_one_is_not(uri: str):
    check_no_secret(uri, "output")
    error = StorageUnavailableError(f"{uri}: it is down")
    assert str(pickle.loads(pickle.dumps(error))) == f"{uri}: it is down"  # noqa: S301 - our own bytes


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("manifest", {"manifest": "https://me:hidden@host/m.jsonl"}),
        ("output", {"output": SIGNED}),
        ("input.audio_root", {"input": {"audio_root": SIGNED}}),
        ("engine.url", {"engine": {"url": ["http://host/v1", "http://me:hidden@host/v1"]}}),
    ],
)
def test_settings_are_checked_before_anything_is_stored(field: str, given: dict):
    settings = BuildSettings(**{"manifest": "m.jsonl", "output": "out", **given})
    with pytest.raises(SettingsError, match=field):
        resolve_settings(settings)


def test_a_signed_manifest_may_be_all_somebody_has():
    settings = BuildSettings(manifest=SIGNED, output="out")
    assert resolve_settings(settings).manifest == SIGNED
