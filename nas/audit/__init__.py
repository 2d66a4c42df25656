"""Audit of a task's images and labels: what may be wrong with them before anything is trained.

Begin with `audit_task` in `audit`, which puts together what the other files find.
"""

from nas.audit.audit import AUDIT_FILES, Audit, audit_task, write_audit

__all__ = ["AUDIT_FILES", "Audit", "audit_task", "write_audit"]
