"""Audit of a task's images and labels: what may be wrong with them before anything is trained."""

from nas.audit.findings import Audit, Confusion, Group, Labels
from nas.audit.run import audit_task, write_audit

__all__ = ["Audit", "Confusion", "Group", "Labels", "audit_task", "write_audit"]
