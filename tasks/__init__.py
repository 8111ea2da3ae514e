"""One file a stage. A task loads, calls the core, stores; it decides nothing itself."""
