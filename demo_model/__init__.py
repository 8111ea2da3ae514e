"""A tiny Qwen2-Audio model that truly hears, and how it was made; no part of earwitness itself."""
