# SPDX-License-Identifier: Apache-2.0
"""What rclpy's classes have and these have not: each raises an error that names it."""


class Missing(AttributeError, NotImplementedError):
    """Something that embedded_ros lacks; an AttributeError too, so that hasattr and `from x import y` work."""


class _Lacking:
    def __init__(self, owner, name):
        self._text = f"embedded_ros: {owner}.{name} is not supported"

    def __get__(self, instance, owner=None):
        raise Missing(self._text)


def lacks(*names):
    """Class decorator: reading one of these attributes raises Missing with the class and the name."""

    def decorate(cls):
        for name in names:
            setattr(cls, name, _Lacking(cls.__name__, name))
        return cls

    return decorate
