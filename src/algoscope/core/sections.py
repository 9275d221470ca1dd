"""Frozen values made of named fields, such as configs and tasks: what does not fit is one line that names the field."""

from collections.abc import Mapping
from functools import wraps
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from algoscope.core.errors import AlgoscopeError, ArgumentError, ConfigError, TaskError, UnknownNameError, shown


class Section(BaseModel):
    """A frozen value with checked fields: unknown fields are errors, numbers must be finite, and a bool is no number.

    Raises:
        UnknownNameError: for a field that does not exist.
        ConfigError: for a missing field, or an illegal value of one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # wrapped, it counts as BaseModel's own, which sections within sections do not call
    @wraps(BaseModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **fields: Any) -> None:
        kind = type(self)
        if args:
            names = ", ".join(f"{name}=..." for name in kind.model_fields)
            raise ArgumentError(f"{kind.__name__} takes its fields by name, not {shown(args[0])} alone: {names}")
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise first_fault(error, kind, kind.__name__) from error

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, fields: object) -> object:
        """Numbers of NumPy and PyTorch as those of Python; a bool only where the field is one."""
        if not isinstance(fields, Mapping):
            return fields
        plain = {name: value.item() if getattr(value, "ndim", None) == 0 else value for name, value in fields.items()}
        for name, value in plain.items():
            annotation = cls.model_fields[name].annotation if name in cls.model_fields else bool
            if isinstance(value, bool) and annotation is not bool and bool not in get_args(annotation):
                raise ValueError(f"{name} is neither true nor false, so it cannot be {value}")
        return plain


def first_fault(error: ValidationError, kind: type[BaseModel], name: str, within: str = "") -> AlgoscopeError:
    """The first fault that pydantic found in the fields of a `kind`, in one line. `name` stands for the whole, and
    `within` before the names of fields.
    """
    fault = error.errors()[0]
    if isinstance(told := fault.get("ctx", {}).get("error"), TaskError):
        return told
    where = within + ".".join(map(str, fault["loc"])) if fault["loc"] else name
    if fault["type"] == "extra_forbidden":
        if len(fault["loc"]) > 1:
            return ConfigError(f"{where}: there is no such field")
        return UnknownNameError(f"field of {name}", where, kind.model_fields)
    if fault["type"] == "missing":
        return ConfigError(f"{name} needs the field {where}")
    got = "" if isinstance(fault["input"], dict | BaseModel) else f", not {shown(fault['input'])}"
    return ConfigError(f"{where}: {fault['msg'].removeprefix('Value error, ')}{got}")
