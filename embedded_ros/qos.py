# SPDX-License-Identifier: Apache-2.0
"""rclpy.qos: profiles, policies and presets, and their Cyclone DDS form as rmw_cyclonedds writes it."""

from enum import IntEnum

from cyclonedds.core import Qos
from cyclonedds.qos import Policy

from .time import Duration
from .unsupported import lacks

_INFINITE = 2**63 - 1


class QoSPolicyKind(IntEnum):
    """Kinds of policies."""

    INVALID = 1
    DURABILITY = 2
    DEADLINE = 4
    LIVELINESS = 8
    RELIABILITY = 16
    HISTORY = 32
    LIFESPAN = 64
    DEPTH = 128


class _Policy(IntEnum):
    @property
    def short_key(self):
        """The name in lower case."""
        return self.name.lower()


class HistoryPolicy(_Policy):
    """How many samples are kept."""

    SYSTEM_DEFAULT = 0
    KEEP_LAST = 1
    KEEP_ALL = 2
    UNKNOWN = 3


class ReliabilityPolicy(_Policy):
    """Whether lost samples are sent again."""

    SYSTEM_DEFAULT = 0
    RELIABLE = 1
    BEST_EFFORT = 2
    UNKNOWN = 3
    BEST_AVAILABLE = 4


class DurabilityPolicy(_Policy):
    """Whether a late joiner gets old samples."""

    SYSTEM_DEFAULT = 0
    TRANSIENT_LOCAL = 1
    VOLATILE = 2
    UNKNOWN = 3
    BEST_AVAILABLE = 4


class LivelinessPolicy(_Policy):
    """How a publisher shows that it is alive."""

    SYSTEM_DEFAULT = 0
    AUTOMATIC = 1
    MANUAL_BY_TOPIC = 3
    UNKNOWN = 4
    BEST_AVAILABLE = 5


class InvalidQoSProfileException(Exception):
    """A profile lacks its history depth."""


@lacks("get_c_qos_profile")
class QoSProfile:
    """Quality of service of a publisher, subscription, client or service."""

    def __init__(
        self, *, history=None, depth=None, reliability=None, durability=None, lifespan=None, deadline=None,
        liveliness=None, liveliness_lease_duration=None, avoid_ros_namespace_conventions=False,
    ):  # fmt: skip
        if history is None and depth is None:
            raise InvalidQoSProfileException("History and/or depth settings are required.")
        if history is None:
            history = HistoryPolicy.KEEP_LAST
        elif history == HistoryPolicy.KEEP_LAST and depth is None:
            raise InvalidQoSProfileException("History set to KEEP_LAST without a depth setting.")
        self.history = HistoryPolicy(history)
        self.depth = int(depth or 0)
        self.reliability = ReliabilityPolicy.RELIABLE if reliability is None else ReliabilityPolicy(reliability)
        self.durability = DurabilityPolicy.VOLATILE if durability is None else DurabilityPolicy(durability)
        self.lifespan = lifespan or Duration()
        self.deadline = deadline or Duration()
        self.liveliness = LivelinessPolicy.SYSTEM_DEFAULT if liveliness is None else LivelinessPolicy(liveliness)
        self.liveliness_lease_duration = liveliness_lease_duration or Duration()
        self.avoid_ros_namespace_conventions = avoid_ros_namespace_conventions

    def __eq__(self, other):
        return isinstance(other, QoSProfile) and vars(self) == vars(other)

    __hash__ = None

    def __repr__(self):
        return (
            f"QoSProfile(history={self.history.name}, depth={self.depth}, reliability={self.reliability.name}, "
            f"durability={self.durability.name})"
        )


QoSReliabilityPolicy, QoSDurabilityPolicy, QoSHistoryPolicy = ReliabilityPolicy, DurabilityPolicy, HistoryPolicy
QoSLivelinessPolicy = LivelinessPolicy

_BEST_EFFORT, _RELIABLE = ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE
qos_profile_system_default = QoSProfile(depth=10)
qos_profile_default = QoSProfile(depth=10)
qos_profile_sensor_data = QoSProfile(depth=5, reliability=_BEST_EFFORT)
qos_profile_services_default = QoSProfile(depth=10)
qos_profile_parameters = QoSProfile(depth=1000)
qos_profile_parameter_events = QoSProfile(depth=1000)
qos_profile_action_status_default = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
qos_profile_best_available = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_AVAILABLE)


def to_profile(qos):
    """Return a profile for what create_publisher and create_subscription take: a profile or a depth."""
    if isinstance(qos, QoSProfile):
        return qos
    if isinstance(qos, int) and not isinstance(qos, bool):
        if qos < 0:
            raise ValueError("Integer qos_profile (history depth) must be non-negative")
        return QoSProfile(depth=qos)
    raise TypeError(f"Expected QoSProfile or int, but received {type(qos)!r}")


def to_dds(profile, user_data="", writer=True):
    """Return the Cyclone DDS Qos of a profile; `user_data` goes into USER_DATA."""
    if ReliabilityPolicy.BEST_AVAILABLE == profile.reliability or profile.durability == DurabilityPolicy.BEST_AVAILABLE:
        raise NotImplementedError("embedded_ros: the BEST_AVAILABLE policies are not supported")
    if profile.liveliness == LivelinessPolicy.MANUAL_BY_TOPIC:
        raise NotImplementedError("embedded_ros: MANUAL_BY_TOPIC liveliness is not supported")
    if profile.history == HistoryPolicy.KEEP_ALL:
        history = Policy.History.KeepAll
    else:
        history = Policy.History.KeepLast(max(1, profile.depth))
    best_effort = profile.reliability == ReliabilityPolicy.BEST_EFFORT
    transient = profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
    policies = [
        history,
        Policy.Reliability.BestEffort if best_effort else Policy.Reliability.Reliable(_INFINITE),
        Policy.Durability.TransientLocal if transient else Policy.Durability.Volatile,
    ]
    if writer:
        policies.append(Policy.WriterDataLifecycle(autodispose=False))
        if transient:
            policies.append(Policy.DurabilityService(0, history, -1, -1, -1))
        if profile.lifespan.nanoseconds:
            policies.append(Policy.Lifespan(profile.lifespan.nanoseconds))
    if profile.deadline.nanoseconds:
        policies.append(Policy.Deadline(profile.deadline.nanoseconds))
    if user_data:
        policies.append(Policy.Userdata(user_data.encode()))
    return Qos(*policies)


def from_dds(qos):
    """Return the profile of a discovered endpoint; what is not on the wire (history) is UNKNOWN, as in rclpy."""
    reliable = qos[Policy.Reliability] is not None and qos[Policy.Reliability] != Policy.Reliability.BestEffort
    transient = qos[Policy.Durability] == Policy.Durability.TransientLocal
    return QoSProfile(
        history=HistoryPolicy.UNKNOWN,
        depth=0,
        reliability=_RELIABLE if reliable else _BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if transient else DurabilityPolicy.VOLATILE,
        liveliness=LivelinessPolicy.AUTOMATIC,
    )


class QoSCompatibility(IntEnum):
    """Answer of qos_check_compatible."""

    OK = 0
    WARNING = 1
    ERROR = 2


def qos_check_compatible(publisher_qos, subscription_qos):
    """Tell whether two profiles match: (QoSCompatibility, reason)."""
    reasons = []
    best_effort = ReliabilityPolicy.BEST_EFFORT
    if publisher_qos.reliability == best_effort and subscription_qos.reliability == ReliabilityPolicy.RELIABLE:
        reasons.append("ERROR: Best effort publisher and reliable subscription;")
    if (
        publisher_qos.durability == DurabilityPolicy.VOLATILE
        and subscription_qos.durability == DurabilityPolicy.TRANSIENT_LOCAL
    ):
        reasons.append("ERROR: Volatile publisher and transient local subscription;")
    return (QoSCompatibility.ERROR if reasons else QoSCompatibility.OK), " ".join(reasons)
