# SPDX-License-Identifier: Apache-2.0
"""One field of a message: its default, the checks of rclpy's setters, and its forms in Python and on the wire.

In Python a numeric sequence is an `array.array`, a fixed numeric array an `ndarray`, `byte` is `bytes` of length 1,
as in rclpy. On the wire (for rosbags' CDR code) numeric arrays are ndarrays and a byte is an int.
"""

import array
import operator
import sys
from collections import UserList
from collections.abc import Sequence, Set

import numpy as np
from rosbags.interfaces import Nodetype

_TYPECODES = {
    "int8": "b", "uint8": "B", "char": "B", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I",
    "int64": "q", "uint64": "Q", "float32": "f", "float64": "d",
}  # fmt: skip
_IDL_NAMES = {"bool": "boolean", "byte": "octet", "char": "uint8", "float32": "float", "float64": "double"}
_BOUNDS = {
    name: (int(np.iinfo(name).min), int(np.iinfo(name).max))
    for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
}
_BOUNDS["char"] = (0, 255)


class Field:
    """Describe field `name` from rosbags' description; `lookup(type name)` gives the class of a nested message."""

    def __init__(self, name, description, lookup):
        self.name = name
        self.slot = "_f_" + name
        kind, rest = description
        self.is_array = kind == Nodetype.ARRAY
        self.is_sequence = kind == Nodetype.SEQUENCE
        self.size = 0
        if self.is_array or self.is_sequence:
            element, self.size = rest
            kind, rest = element
        self.nested = rest if kind == Nodetype.NAME else None
        self.base, self.string_bound = (None, 0) if self.nested else rest
        self.lookup = lookup
        self.is_many = self.is_array or self.is_sequence
        self.is_numeric_many = self.is_many and self.base in _TYPECODES
        self.dtype = np.dtype({"char": "uint8"}.get(self.base, self.base)) if self.base in _TYPECODES else None
        # Fields whose form on the wire differs get a second property, `wire_name`, which the CDR code reads.
        self.differs_on_wire = self.is_numeric_many or (self.base in ("byte", "bool") and self.is_many)
        self.differs_on_wire = self.differs_on_wire or self.base == "byte"
        self.wire_name = "_wire_" + name if self.differs_on_wire else self.slot

    def type_text(self):
        """Return the IDL text that rclpy's get_fields_and_field_types gives."""
        if self.nested:
            package, _, name = self.nested.split("/")
            text = f"{package}/{name}"
        elif self.base == "string" and self.string_bound:
            text = f"string<{self.string_bound}>"
        else:
            text = _IDL_NAMES.get(self.base, self.base)
        if self.is_array:
            return f"{text}[{self.size}]"
        if self.is_sequence:
            return f"sequence<{text}, {self.size}>" if self.size else f"sequence<{text}>"
        return text

    def default(self, stated=None):
        """Return a new default value; `stated` is the default of the definition text."""
        if stated is not None:
            return self.accept(stated if not self.base == "byte" or self.is_many else bytes([stated]))
        if self.is_numeric_many:
            return np.zeros(self.size, self.dtype) if self.is_array else array.array(_TYPECODES[self.base])
        if self.is_array:
            return [self._zero() for _ in range(self.size)]
        return [] if self.is_sequence else self._zero()

    def _zero(self):
        if self.nested:
            return self.lookup(self.nested)()
        return {"string": "", "bool": False, "byte": b"\0", "float32": 0.0, "float64": 0.0}.get(self.base, 0)

    def accept(self, value):
        """Check `value` as rclpy's setter does (AssertionError) and return what the message keeps."""
        if not self.is_many:
            self._check_one(value)
            return value
        if isinstance(value, array.array):
            if not self.is_sequence or not self.is_numeric_many or value.typecode != _TYPECODES[self.base]:
                self._fail(value)
            self._check_length(value)
            return value
        if isinstance(value, np.ndarray):
            if not (self.is_array and self.is_numeric_many):
                self._fail(value, "rclpy refuses numpy arrays in a sequence; give array.array or .tolist()")
            if value.dtype != self.dtype or value.size != self.size:
                self._fail(value)
            return value
        if isinstance(value, str) or not isinstance(value, (Sequence, Set, UserList)):
            self._fail(value)
        self._check_length(value)
        if isinstance(value, (bytes, bytearray)) and self.base in ("uint8", "char"):
            return np.frombuffer(value, np.uint8).copy() if self.is_array else array.array("B", value)
        for item in value:
            self._check_one(item)
        if self.is_numeric_many:
            return np.array(list(value), self.dtype) if self.is_array else array.array(_TYPECODES[self.base], value)
        return value if isinstance(value, list) else list(value)

    def _check_length(self, value):
        if (self.is_array and len(value) != self.size) or (self.is_sequence and 0 < self.size < len(value)):
            self._fail(value)

    def _check_one(self, value):
        if self.nested:
            good = isinstance(value, self.lookup(self.nested))
        elif self.base == "string":
            good = isinstance(value, str) and not 0 < self.string_bound < len(value)
        elif self.base == "bool":
            good = isinstance(value, (bool, np.bool_))
        elif self.base == "byte":
            good = isinstance(value, (bytes, bytearray)) and len(value) == 1
        elif self.base in ("float32", "float64"):
            good = isinstance(value, float)
        else:
            low, high = _BOUNDS[self.base]
            good = isinstance(value, int) and low <= value <= high
        if not good:
            self._fail(value)

    def _fail(self, value, hint=""):
        text = repr(value)
        raise AssertionError(
            f"The '{self.name}' field must be of type '{self.type_text()}', not {type(value).__name__} "
            f"{text if len(text) < 60 else text[:57] + '...'}" + (f" ({hint})" if hint else "")
        )

    def getter(self):
        """Return the getter: numeric sequences that came from the wire become an array.array at first use."""
        if not (self.is_sequence and self.is_numeric_many):
            return operator.attrgetter(self.slot)
        slot, code = self.slot, _TYPECODES[self.base]

        def get(message):
            value = getattr(message, slot)
            if not isinstance(value, array.array):
                wire, value = value, array.array(code)
                value.frombytes(np.ascontiguousarray(wire).data.cast("B"))
                setattr(message, slot, value)
            return value

        return get

    def to_wire(self, value):
        """Return the form that rosbags' CDR code serialises."""
        if self.is_numeric_many:
            if isinstance(value, np.ndarray):
                return np.ascontiguousarray(value)
            return np.frombuffer(value, self.dtype)
        if self.base == "byte":
            # rosbags counts a byte from -128 to 127
            joined = np.frombuffer(b"".join(value) if self.is_many else value, np.int8)
            return joined if self.is_many else int(joined[0])
        return np.array(value, np.bool_)

    def from_wire(self, value):
        """Return what the message keeps for a value that rosbags' CDR code made."""
        if self.is_numeric_many:
            if sys.byteorder != "little":
                raise NotImplementedError("embedded_ros: big-endian machines are not supported")
            return value.copy() if self.is_array else value
        if self.base == "byte":
            return [bytes([item & 255]) for item in value.tolist()] if self.is_many else bytes([value & 255])
        return value.tolist()

    def equal(self, one, other):
        """Compare two values of this field."""
        if self.is_numeric_many:
            return len(one) == len(other) and bool(np.array_equal(one, other))
        return one == other
