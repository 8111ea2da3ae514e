"""The engine: vLLM behind its OpenAI-compatible API, started by us or given by address."""
