"""The stage graph, artifact keys, the planner, outcomes and the local runner."""
