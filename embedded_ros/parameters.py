# SPDX-License-Identifier: Apache-2.0
"""rclpy.parameter, and the parameters of one node with descriptors, ranges and callbacks."""

import array
from enum import IntEnum

from .messages import message_class


def _message(kind, /, **values):
    return message_class(f"rcl_interfaces/msg/{kind}")(**values)


class ParameterException(Exception):
    """Base of the parameter errors."""


class ParameterNotDeclaredException(ParameterException):
    """The parameter was not declared."""

    def __init__(self, names):
        super().__init__(f"Invalid access to undeclared parameter(s): {names}")


class ParameterAlreadyDeclaredException(ParameterException):
    """The parameter was declared before."""

    def __init__(self, names):
        super().__init__(f"Parameter(s) already declared: {names}")


class InvalidParameterValueException(ParameterException):
    """The value is outside the range or refused by a callback."""

    def __init__(self, name, value, reason):
        super().__init__(f"Invalid parameter value ({value}) for parameter '{name}'. Reason: {reason}")


class InvalidParameterTypeException(ParameterException):
    """The value is of another type than declared."""

    def __init__(self, parameter, expected):
        super().__init__(
            f"Trying to set parameter '{parameter.name}' to '{parameter.value}' of type '{parameter.type_.name}', "
            f"expecting type '{expected}'"
        )


class ParameterUninitializedException(ParameterException):
    """The parameter was declared without a value."""

    def __init__(self, name):
        super().__init__(f"The parameter '{name}' is not initialized")


class Parameter:
    """A name, a type and a value."""

    class Type(IntEnum):
        """Types of values."""

        NOT_SET = 0
        BOOL = 1
        INTEGER = 2
        DOUBLE = 3
        STRING = 4
        BYTE_ARRAY = 5
        BOOL_ARRAY = 6
        INTEGER_ARRAY = 7
        DOUBLE_ARRAY = 8
        STRING_ARRAY = 9

        @classmethod
        def from_parameter_value(cls, value):
            """Return the type of a Python value."""
            if value is None:
                return cls.NOT_SET
            for kind, result in ((bool, cls.BOOL), (int, cls.INTEGER), (float, cls.DOUBLE), (str, cls.STRING)):
                if isinstance(value, kind):
                    return result
            if isinstance(value, array.array):
                return cls.INTEGER_ARRAY if value.typecode in "bBhHiIlLqQ" else cls.DOUBLE_ARRAY
            if isinstance(value, (list, tuple)):
                for kind, result in (
                    (bytes, cls.BYTE_ARRAY), (bool, cls.BOOL_ARRAY), (int, cls.INTEGER_ARRAY),
                    (float, cls.DOUBLE_ARRAY), (str, cls.STRING_ARRAY),
                ):  # fmt: skip
                    if all(isinstance(item, kind) for item in value):
                        return result
            raise TypeError(f"The given value is not one of the allowed types '{value}'.")

    def __init__(self, name, type_=None, value=None):
        self.name = name
        self.type_ = Parameter.Type.from_parameter_value(value) if type_ is None else type_
        if value is not None and type_ is not None and not _fits(type_, value):
            raise ValueError(f"Type '{type_}' and value '{value}' do not agree")
        self.value = value

    def __repr__(self):
        return f"Parameter(name={self.name!r}, type_={self.type_.name}, value={self.value!r})"

    def __eq__(self, other):
        return isinstance(other, Parameter) and (self.name, self.value) == (other.name, other.value)

    __hash__ = None

    def get_parameter_value(self):
        """Return a ParameterValue message."""
        message = _message("ParameterValue", type=int(self.type_))
        if self.type_ != Parameter.Type.NOT_SET:
            setattr(message, f"{self.type_.name.lower()}_value", self.value)
        return message

    def to_parameter_msg(self):
        """Return a Parameter message."""
        return _message("Parameter", name=self.name, value=self.get_parameter_value())

    @classmethod
    def from_parameter_msg(cls, msg):
        """Make one from a Parameter message."""
        type_ = Parameter.Type(msg.value.type)
        return cls(msg.name, type_, parameter_value_to_python(msg.value))


def parameter_value_to_python(message):
    """Return the Python value of a ParameterValue message."""
    type_ = Parameter.Type(message.type)
    if type_ == Parameter.Type.NOT_SET:
        return None
    value = getattr(message, f"{type_.name.lower()}_value")
    return value.tolist() if isinstance(value, array.array) else value


def _fits(type_, value):
    found = Parameter.Type.from_parameter_value(value)
    return found == type_ or (isinstance(value, (list, tuple)) and not value and type_ >= Parameter.Type.BYTE_ARRAY)


class ParameterSet:
    """The parameters of one node; `overrides` are the values from the command line."""

    def __init__(self, overrides, allow_undeclared=False):
        self._overrides, self._allow_undeclared = dict(overrides), allow_undeclared
        self.values, self.descriptors = {}, {}
        self.on_set, self.post_set = [], []

    @property
    def overrides(self):
        """Values given on the command line."""
        return self._overrides

    def declare(self, name, value=None, descriptor=None, ignore_override=False):
        """Declare a parameter; returns it with its value: override, else default."""
        if name in self.values:
            raise ParameterAlreadyDeclaredException(name)
        if not name:
            raise ValueError("a parameter needs a name")
        descriptor = descriptor or _message("ParameterDescriptor")
        type_ = Parameter.Type.NOT_SET
        if isinstance(value, Parameter.Type):
            type_, value = value, None
        elif value is not None:
            type_ = Parameter.Type.from_parameter_value(value)
        elif descriptor.type:
            type_ = Parameter.Type(descriptor.type)
        if not ignore_override and name in self._overrides:
            value = self._overrides[name]
        if value is None and type_ != Parameter.Type.NOT_SET:
            parameter = Parameter(name, Parameter.Type.NOT_SET)
        else:
            parameter = Parameter(name, value=list(value) if isinstance(value, tuple) else value)
        if parameter.value is not None and not descriptor.dynamic_typing and type_ != Parameter.Type.NOT_SET:
            if not _fits(type_, parameter.value):
                raise InvalidParameterTypeException(parameter, type_.name)
            parameter.type_ = type_
        descriptor.name, descriptor.type = name, int(type_)
        reason = _range_error(parameter, descriptor) or self._ask([parameter])
        if reason:
            raise InvalidParameterValueException(name, parameter.value, reason)
        self.values[name], self.descriptors[name] = parameter, descriptor
        self._tell([parameter])
        return parameter

    def describe(self, name, descriptor, alternative=None):
        """Replace the descriptor of a declared parameter, and its value if one is given; returns the value."""
        parameter = self.get(name)
        if alternative is not None:
            parameter = Parameter(name, value=alternative)
        reason = _range_error(parameter, descriptor)
        if reason:
            raise InvalidParameterValueException(name, parameter.value, reason)
        descriptor.name = name
        descriptor.type = descriptor.type or self.descriptors[name].type
        self.values[name], self.descriptors[name] = parameter, descriptor
        return parameter.get_parameter_value()

    def listing(self, prefixes, depth):
        """Return a ListParametersResult; names are separated by dots."""
        result = _message("ListParametersResult")
        for name in sorted(self.values):
            if not prefixes:
                fits = not depth or name.count(".") < depth
            else:
                fits = any(
                    (name == prefix or name.startswith(prefix + "."))
                    and (not depth or name[len(prefix) :].count(".") <= depth)
                    for prefix in prefixes
                )
            if fits:
                result.names.append(name)
                prefix = name.rpartition(".")[0]
                if prefix and prefix not in result.prefixes:
                    result.prefixes.append(prefix)
        return result

    def _ask(self, parameters):
        for callback in list(self.on_set):
            result = callback(parameters)
            if not result.successful:
                return result.reason or "refused by a parameter callback"
        return ""

    def _tell(self, parameters):
        for callback in list(self.post_set):
            callback(parameters)

    def get(self, name):
        """Return a declared parameter that has a value."""
        if name not in self.values:
            if self._allow_undeclared:
                return Parameter(name, Parameter.Type.NOT_SET)
            raise ParameterNotDeclaredException(name)
        parameter = self.values[name]
        descriptor = self.descriptors[name]
        if parameter.type_ == Parameter.Type.NOT_SET and descriptor.type and not descriptor.dynamic_typing:
            raise ParameterUninitializedException(name)
        return parameter

    def set_together(self, parameters):
        """Set all or none; returns a SetParametersResult."""
        checked = []
        for parameter in parameters:
            if parameter.name not in self.values:
                if not self._allow_undeclared:
                    raise ParameterNotDeclaredException(parameter.name)
                self.descriptors[parameter.name] = _message("ParameterDescriptor", name=parameter.name)
            descriptor = self.descriptors[parameter.name]
            if descriptor.read_only:
                return _refused(f"Trying to set a read-only parameter: {parameter.name}.")
            type_ = Parameter.Type(descriptor.type)
            if type_ != Parameter.Type.NOT_SET and not descriptor.dynamic_typing:
                if parameter.value is None or not _fits(type_, parameter.value):
                    return _refused(
                        f"Wrong parameter type, expected '{type_}' got '{parameter.type_}' for {parameter.name}"
                    )
            reason = _range_error(parameter, descriptor)
            if reason:
                return _refused(reason)
            checked.append(parameter)
        reason = self._ask(checked)
        if reason:
            return _refused(reason)
        for parameter in checked:
            self.values[parameter.name] = parameter
        self._tell(checked)
        return _message("SetParametersResult", successful=True)


def _refused(reason):
    return _message("SetParametersResult", successful=False, reason=reason)


def _range_error(parameter, descriptor):
    """Return why a value is outside the range of its descriptor, or ''."""
    value = parameter.value
    ranges = []
    if parameter.type_ == Parameter.Type.INTEGER:
        ranges = descriptor.integer_range
    elif parameter.type_ == Parameter.Type.DOUBLE:
        ranges = descriptor.floating_point_range
    for limit in ranges:
        if not limit.from_value <= value <= limit.to_value:
            return (
                f"Parameter {parameter.name} out of range Min: {limit.from_value}, Max: {limit.to_value}, "
                f"value: {value}"
            )
        if limit.step and value not in (limit.from_value, limit.to_value):
            steps = (value - limit.from_value) / limit.step
            if abs(steps - round(steps)) > 1e-6:
                return (
                    f"The parameter value for {parameter.name} is not a valid step. "
                    f"Min: {limit.from_value}, max: {limit.to_value}, value: {value}, step: {limit.step}"
                )
    return ""
