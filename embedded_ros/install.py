# SPDX-License-Identifier: Apache-2.0
"""Put rclpy, tf2_ros, cv_bridge and the message packages in place when no real ROS 2 is there."""

import importlib.util
import sys
import types
import warnings

from .unsupported import Missing

_state = {"runtime": None}


def runtime():
    """Return 'rclpy' or 'embedded': what install() put in place, or would."""
    if _state["runtime"] is None:
        return "rclpy" if _find("rclpy") else "embedded"
    return _state["runtime"]


def install():
    """Make `import rclpy` work. With a sourced ROS 2 the real one stays.

    There only a broken cv_bridge and a missing diagnostic_updater are replaced.

    Returns:
        'rclpy' or 'embedded'.
    """
    if _state["runtime"] is None:
        if _find("rclpy"):
            _state["runtime"] = "rclpy"
            _replace_broken_cv_bridge()
            if not _find("diagnostic_updater"):
                _install_diagnostic_updater()
        else:
            _install_all()
            _state["runtime"] = "embedded"
    return _state["runtime"]


def _find(name):
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _replace_broken_cv_bridge():
    """Use the numpy CvBridge where the compiled one does not import (numpy 2 is the common case)."""
    try:
        import cv_bridge  # noqa: F401
    except Exception as error:  # a compiled half may raise anything
        from . import cv_bridge as own

        for name in [name for name in sys.modules if name == "cv_bridge" or name.startswith("cv_bridge.")]:
            del sys.modules[name]
        _module("cv_bridge", {"CvBridge": own.CvBridge, "CvBridgeError": own.CvBridgeError})
        warnings.warn(f"cv_bridge does not import ({error}); a numpy CvBridge takes its place", stacklevel=3)


def _install_diagnostic_updater():
    from . import diagnostic_updater as own

    _module("diagnostic_updater", _public(own, "Updater", "DiagnosticStatusWrapper"))


class _Module(types.ModuleType):
    """A module that names what it lacks."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise Missing(f"embedded_ros: {self.__name__}.{name} is not supported")


class _LazyTypes(types.ModuleType):
    """`pkg.msg`, `pkg.srv` or `pkg.action`: classes are made on first use."""

    def __init__(self, name, make, names):
        super().__init__(name)
        self._make, self._names = make, names
        self.__all__ = sorted(names)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in self._names:
            raise AttributeError(f"embedded_ros knows no {self.__name__}.{name}")
        made = self._make(self._names[name])
        setattr(self, name, made)
        return made

    def __dir__(self):
        return sorted(self._names)


def _module(name, contents, package=True):
    module = _Module(name)
    module.__package__ = name if package else name.rpartition(".")[0]
    module.__spec__ = importlib.util.spec_from_loader(name, loader=None, is_package=package)
    if package:
        module.__path__ = []
    module.__dict__.update(contents)
    _register(name, module)
    return module


def _register(name, module):
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


def _install_messages():
    from .definitions import definitions
    from .messages import action_class, message_class, service_class

    known = definitions()
    packages = {}
    for make, names in (
        (message_class, known.messages), (service_class, known.services), (action_class, known.actions)
    ):  # fmt: skip
        for full in names:
            package, kind, name = full.split("/")
            packages.setdefault(package, {}).setdefault(kind, (make, {}))[1][name] = full
    for package, kinds in sorted(packages.items()):
        if package not in sys.modules:
            _module(package, {})
        for kind, (make, names) in kinds.items():
            module = _LazyTypes(f"{package}.{kind}", make, names)
            module.__spec__ = importlib.util.spec_from_loader(module.__name__, loader=None)
            _register(module.__name__, module)


def _public(module, *names):
    return {name: getattr(module, name) for name in names}


def _all_of(module):
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


def _install_all():
    from . import (
        action,
        action_client,
        arguments,
        context,
        cv_bridge,
        endpoints,
        events,
        executor,
        facade,
        graph,
        lifecycle,
        logging,
        node,
        parameters,
        qos,
        services,
        task,
        tf2,
        tf2_track,
        time,
    )

    _install_messages()
    _module("rclpy", {**_public(facade, *facade.__all__), "Context": context.Context})
    submodules = {
        "node": {"Node": node.Node, **_all_of(endpoints)},
        "qos": _all_of(qos),
        "executors": _all_of(executor),
        "callback_groups": _public(
            executor, "CallbackGroup", "MutuallyExclusiveCallbackGroup", "ReentrantCallbackGroup"
        ),
        "duration": _public(time, "Duration"),
        "time": _public(time, "Time", "Duration"),
        "clock": _public(time, "Clock", "ROSClock", "ClockType"),
        "parameter": _public(parameters, "Parameter", "parameter_value_to_python"),
        "exceptions": {
            **_public(
                parameters, "ParameterException", "ParameterNotDeclaredException", "ParameterAlreadyDeclaredException",
                "InvalidParameterValueException", "InvalidParameterTypeException", "ParameterUninitializedException",
            ),
            "NotInitializedException": context.NotInitializedException,
            "ROSInterruptException": context.ROSInterruptException,
        },
        "logging": _all_of(logging),
        "task": _public(task, "Future", "Task"),
        "context": _public(context, "Context"),
        "publisher": {"Publisher": endpoints.Publisher},
        "subscription": {"Subscription": endpoints.Subscription},
        "timer": {"Timer": endpoints.Timer, "Rate": endpoints.Rate},
        "service": {"Service": services.Service},
        "client": {"Client": services.Client},
        "event_handler": _public(events, "SubscriptionEventCallbacks", "UnsupportedEventTypeError"),
        "guard_condition": {"GuardCondition": endpoints.GuardCondition},
        "signals": _public(facade, "SignalHandlerOptions", "install_signal_handlers", "uninstall_signal_handlers"),
        "utilities": _public(facade, "ok", "shutdown", "try_shutdown", "get_default_context", "remove_ros_args"),
        "serialization": _public(facade, "serialize_message", "deserialize_message"),
        "action": {**_all_of(action), "ActionClient": action_client.ActionClient},
        "lifecycle": _all_of(lifecycle),
        "topic_endpoint_info": _public(graph, "TopicEndpointInfo", "TopicEndpointTypeEnum"),
        "_rclpy_pybind11": {
            **_public(arguments, "RCLError", "RCLInvalidROSArgsError", "UnknownROSArgsError"),
            "NodeNameNonExistentError": graph.NodeNameNonExistentError,
        },
    }  # fmt: skip
    for name, contents in submodules.items():
        _module(f"rclpy.{name}", contents, package=name in ("action", "lifecycle"))
    _module("rclpy.action.server", _all_of(action), package=False)
    _module("rclpy.action.client", _all_of(action_client), package=False)
    tf2_names = {**_all_of(tf2_track), **_all_of(tf2)}
    _module("tf2_ros", tf2_names)
    for name in ("buffer", "transform_listener", "transform_broadcaster", "static_transform_broadcaster"):
        _module(f"tf2_ros.{name}", tf2_names, package=False)
    _module("cv_bridge", _public(cv_bridge, "CvBridge", "CvBridgeError"))
    _install_diagnostic_updater()
