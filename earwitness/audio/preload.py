"""Imported by the server process that workers are forked from: the decoders, loaded and warm."""

from __future__ import annotations

import av  # noqa: F401 - loaded here so that no worker has to
import soundfile  # noqa: F401 - likewise

from earwitness.audio import decode

decode.warm_up()
