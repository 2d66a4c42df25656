"""What a job leaves behind, in memory and in its folder; none of it is code of anybody.

Begin with `result`, which reads a finished folder back; `run_record` is its run.json.
"""
