"""A build from plan to publication, stage by stage, on any storage."""
