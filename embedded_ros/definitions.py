# SPDX-License-Identifier: Apache-2.0
"""Definitions of message, service and action types: rosbags' Jazzy store, the few services below, and our own texts.

A definition is (constants, fields, defaults) in rosbags' notation. Services and actions become plain structs named
`pkg/srv/Name_Request`, `pkg/action/Name_SendGoal_Request`, ... exactly as rosidl derives them.
"""

import sys
from functools import lru_cache
from importlib import resources
from pathlib import Path

from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.base import Cardinality, NamedType
from rosbags.typesys.msg import MSGParser

OWN_PACKAGE = "rays_as_pixels_interfaces"
_TIME = (Nodetype.NAME, "builtin_interfaces/msg/Time")
_UUID = (Nodetype.NAME, "unique_identifier_msgs/msg/UUID")
_EMPTY_FIELD = ("structure_needs_at_least_one_member", (Nodetype.BASE, ("uint8", 0)))
# Defaults that the standard .msg files state; rosbags' store does not keep them.
_DEFAULTS = {
    "geometry_msgs/msg/Quaternion": {"x": 0.0, "y": 0.0, "z": 0.0, "w": 1.0},
    "rcl_interfaces/msg/ParameterDescriptor": {"read_only": False, "dynamic_typing": False},
    "sensor_msgs/msg/NavSatStatus": {"status": -2},
    "type_description_interfaces/msg/FieldType": {"type_id": 0},
}

# rosbags holds no services. These are the published definitions of the ones that nodes here use.
_SERVICES = {
    "std_srvs/srv/Empty": "---\n",
    "std_srvs/srv/SetBool": "bool data\n---\nbool success\nstring message\n",
    "std_srvs/srv/Trigger": "---\nbool success\nstring message\n",
    "action_msgs/srv/CancelGoal": "action_msgs/GoalInfo goal_info\n---\nint8 ERROR_NONE=0\nint8 ERROR_REJECTED=1\n"
    "int8 ERROR_UNKNOWN_GOAL_ID=2\nint8 ERROR_GOAL_TERMINATED=3\nint8 return_code\n"
    "action_msgs/GoalInfo[] goals_canceling\n",
    "lifecycle_msgs/srv/ChangeState": "lifecycle_msgs/Transition transition\n---\nbool success\n",
    "lifecycle_msgs/srv/GetState": "---\nlifecycle_msgs/State current_state\n",
    "lifecycle_msgs/srv/GetAvailableStates": "---\nlifecycle_msgs/State[] available_states\n",
    "lifecycle_msgs/srv/GetAvailableTransitions": "---\nlifecycle_msgs/TransitionDescription[] available_transitions\n",
    "rcl_interfaces/srv/GetParameters": "string[] names\n---\nrcl_interfaces/ParameterValue[] values\n",
    "rcl_interfaces/srv/GetParameterTypes": "string[] names\n---\nuint8[] types\n",
    "rcl_interfaces/srv/SetParameters": "rcl_interfaces/Parameter[] parameters\n---\n"
    "rcl_interfaces/SetParametersResult[] results\n",
    "rcl_interfaces/srv/SetParametersAtomically": "rcl_interfaces/Parameter[] parameters\n---\n"
    "rcl_interfaces/SetParametersResult result\n",
    "rcl_interfaces/srv/ListParameters": "uint64 DEPTH_RECURSIVE=0\nstring[] prefixes\nuint64 depth\n---\n"
    "rcl_interfaces/ListParametersResult result\n",
    "rcl_interfaces/srv/DescribeParameters": "string[] names\n---\nrcl_interfaces/ParameterDescriptor[] descriptors\n",
    "nav_msgs/srv/GetPlan": "geometry_msgs/PoseStamped start\ngeometry_msgs/PoseStamped goal\nfloat32 tolerance\n---\n"
    "nav_msgs/Path plan\n",
    "sensor_msgs/srv/SetCameraInfo": "sensor_msgs/CameraInfo camera_info\n---\nbool success\nstring status_message\n",
    "tf2_msgs/srv/FrameGraph": "---\nstring frame_yaml\n",
}


class Definitions:
    """All known types: `messages`, `services` and `actions` hold their full names, `store` the rosbags typestore."""

    def __init__(self):
        self.store = get_typestore(Stores.ROS2_JAZZY)
        self.defaults = dict(_DEFAULTS)
        self.messages = sorted(self.store.fielddefs)
        self.services = []
        self.actions = []
        for name, text in _SERVICES.items():
            self.add_service(name, text)
        for kind, name, text in own_texts():
            full = f"{OWN_PACKAGE}/{kind}/{name}"
            if kind == "action":
                self.add_action(full, text)
            elif kind == "srv":
                self.add_service(full, text)
            else:
                self.add_struct(full, text)
                self.messages.append(full)

    def add_struct(self, full_name, text):
        """Parse one message text and register it as `pkg/kind/Name`."""
        package, _, name = full_name.split("/")
        parsed = MSGParser(f"MSG: {package}/msg/{name}\n{text}").specification()[0]
        constants = [(c.name, c.typ.value, c.value) for c in parsed.constants]
        fields = [(f.name, _describe(f.typ, package)) for f in parsed.fields]
        self.add_fields(full_name, fields, constants)
        self.defaults[full_name] = {f.name: f.value for f in parsed.fields if f.value is not None}

    def add_fields(self, full_name, fields, constants=()):
        """Register a struct whose fields are already in rosbags' notation."""
        self.store.fielddefs[full_name] = (list(constants), list(fields) or [_EMPTY_FIELD])

    def add_service(self, full_name, text):
        """Register `Name_Request` and `Name_Response` of a .srv text."""
        for part, suffix in zip(_split(text, 2, full_name), ("_Request", "_Response"), strict=True):
            self.add_struct(full_name + suffix, part)
        self.services.append(full_name)

    def add_action(self, full_name, text):
        """Register the three parts of an .action text and the wire structs that rosidl derives from them."""
        for part, suffix in zip(_split(text, 3, full_name), ("_Goal", "_Result", "_Feedback"), strict=True):
            self.add_struct(full_name + suffix, part)

        def named(suffix):
            return (Nodetype.NAME, full_name + suffix)

        accepted = (Nodetype.BASE, ("bool", 0))
        status = (Nodetype.BASE, ("int8", 0))
        self.add_fields(full_name + "_SendGoal_Request", [("goal_id", _UUID), ("goal", named("_Goal"))])
        self.add_fields(full_name + "_SendGoal_Response", [("accepted", accepted), ("stamp", _TIME)])
        self.add_fields(full_name + "_GetResult_Request", [("goal_id", _UUID)])
        self.add_fields(full_name + "_GetResult_Response", [("status", status), ("result", named("_Result"))])
        self.add_fields(full_name + "_FeedbackMessage", [("goal_id", _UUID), ("feedback", named("_Feedback"))])
        self.actions.append(full_name)


@lru_cache(maxsize=1)
def definitions():
    """Load all definitions once."""
    return Definitions()


def own_texts():
    """List (kind, name, text) of our own interface files, from the first place that has any.

    Looked for in the installed package, below sys.prefix/share, and in the checkout, in this order.
    """
    places = []
    try:
        places.append(resources.files("embedded_ros.interfaces"))
    except (ModuleNotFoundError, TypeError):
        pass
    places.append(Path(sys.prefix) / "share" / OWN_PACKAGE)
    places.append(Path(__file__).resolve().parent.parent / OWN_PACKAGE)
    for place in places:
        found = []
        for kind in ("msg", "srv", "action"):
            folder = place / kind
            if folder.is_dir():
                found += [
                    (kind, entry.name.rsplit(".", 1)[0], entry.read_text(encoding="utf-8"))
                    for entry in sorted(folder.iterdir(), key=lambda item: item.name)
                    if entry.name.endswith("." + kind)
                ]
        if found:
            return found
    return []


def _split(text, count, name):
    parts, current = [], []
    for line in text.splitlines():
        if line.strip() == "---":
            parts.append("\n".join(current) + "\n")
            current = []
        else:
            current.append(line)
    parts.append("\n".join(current) + "\n")
    if len(parts) != count:
        raise ValueError(f"{name}: expected {count} parts separated by '---', found {len(parts)}")
    return parts


def _describe(parsed, package):
    """Turn a parsed type into rosbags' field description."""
    if isinstance(parsed.ref, NamedType):
        parts = parsed.ref.name.split("/")
        if len(parts) == 1:
            parts = [package, "msg", parts[0]]
        elif len(parts) == 2:
            parts = [parts[0], "msg", parts[1]]
        element = (Nodetype.NAME, "/".join(parts))
    else:
        name = parsed.ref.name.value
        if name in ("wstring", "wchar", "fixed", "float128"):
            raise NotImplementedError(f"embedded_ros: fields of type {name} are not supported")
        element = (Nodetype.BASE, (name, parsed.str_size))
    if parsed.cardinality is Cardinality.SCALAR:
        return element
    kind = Nodetype.ARRAY if parsed.cardinality is Cardinality.ARRAY else Nodetype.SEQUENCE
    return (kind, (element, parsed.size))
