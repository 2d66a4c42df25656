"""Audit of a task's images and labels: what may be wrong with them before anything is trained."""

from nas.audit.findings import Audit, Confusion, Group, LabelErrors
from nas.audit.run import AUDIT_FILES, audit_task, write_audit
from nas.audit.synthetic_label_noise import Planted, plant

__all__ = [
    "AUDIT_FILES",
    "Audit",
    "Confusion",
    "Group",
    "LabelErrors",
    "Planted",
    "audit_task",
    "plant",
    "write_audit",
]
