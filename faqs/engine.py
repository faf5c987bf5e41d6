"""Flower in this process: a Grid that calls the ClientApp directly, with nothing else left out.

The client and server code that runs here is the code that runs under a SuperLink and SuperNodes. So every message and
reply is turned into the protobuf bodies that would cross between the two, and read back from those bytes; a client's
state is bytes between calls; and a client that fails answers with Flower's error reply. Only the network is left out:
no processes, ports or polling, so a federation starts in milliseconds.

What of Flower is not in its public modules is confined to the functions at the foot of this file.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_to_proto, recorddict_from_proto, recorddict_to_proto
from flwr.proto.fleet_pb2 import (
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
    Reconnect,
)
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from google.protobuf.message import Message as Body

from faqs.errors import ConfigError, RunError

Scalar: TypeAlias = bool | int | float | str
Direction: TypeAlias = Literal["up", "down"]

# Flower draws these ids at random from all 64-bit numbers; ids as long keep the byte counts honest.
_RUN_ID = _SERVER_TASK_ID = 1 << 63
_FIRST_NODE_ID = 1 << 63
_SESSION_ID = "00000000-0000-0000-0000-000000000000"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Traffic:
    """What one message cost. `message_id` is the instruction's, for the instruction ("down") and its reply ("up").

    `wire_bytes`: the protobuf bodies exchanged between SuperLink and SuperNode to carry the message, requests and
    acknowledgements included; HTTP headers, TLS, polling and heartbeats are not. `flower_bytes`: Flower's own count of
    the records, 0 for an error reply (`error`), which has none.
    """

    message_id: str
    node_id: int
    direction: Direction
    message_type: str
    group_id: str
    wire_bytes: int
    flower_bytes: int
    error: bool = False


class InProcessGrid(Grid):
    """`app` on `num_nodes` nodes of this process, called one after another in the order of the messages.

    A node has a `Context` whose `state` persists from message to message, `run_config`, and the node config
    `partition-id` (0..num_nodes - 1) and `num-partitions`. Node ids and message ids are the same in every run.
    `traffic` lists what crossed, in order. Raises `ConfigError` for fewer than one node.
    """

    def __init__(self, app: ClientApp, num_nodes: int, run_config: Mapping[str, Scalar] | None = None) -> None:
        if num_nodes < 1:
            raise ConfigError(f"a federation has at least one client, got {num_nodes}; ask for 1 or more")
        if "FLWR_LOG_LEVEL" not in os.environ:
            logging.getLogger("flwr").setLevel(logging.WARNING)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = _RUN_ID, SUPERLINK_NODE_ID, _SERVER_TASK_ID
        self.traffic: list[Traffic] = []
        self._app = app
        self._run = Run.create_empty(_RUN_ID)
        self._run_config = dict(run_config or {})
        self._states = {_FIRST_NODE_ID + partition: b"" for partition in range(num_nodes)}
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Name the run these messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run these messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """The same as Flower's `Message(...)`, which is preferred."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """The nodes, in the order of their partitions."""
        return list(self._states)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Run the client of each message; the replies wait to be pulled. Returns the messages' ids."""
        ids = []
        for message in messages:
            message_id = self._new_id(message)
            instruction = self._carry(message, message_id, message_id, "down")
            try:
                reply = self._carry(self._answer(instruction), _digest(message_id), message_id, "up")
            except Exception as fault:  # noqa: BLE001 - whatever a client does wrong is its reply; the server goes on
                _log.debug("node %d failed in %s", message.metadata.dst_node_id, instruction.metadata, exc_info=True)
                error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, _text(f"{type(fault)}:<'{fault}'>"))
                refusal = Message(error, reply_to=instruction)
                reply = self._carry(refusal, _digest(message_id), message_id, "up")
            self._replies[message_id] = reply
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that wait under `message_ids`, each handed out once; ids under which none waits are left out."""
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push and pull. Clients run here and now, so every reply is there at once and `timeout` has no effect."""
        return self.pull_messages(self.push_messages(messages))

    def save_states(self) -> dict[int, bytes]:
        """The state of each node by node id, as protobuf bytes: equal states give equal bytes."""
        return dict(self._states)

    def state_of(self, node_id: int) -> RecordDict:
        """A copy of the state of one node."""
        return _state_from_bytes(self._states[node_id])

    def load_states(self, states: Mapping[int, bytes]) -> None:
        """Go on from what `save_states` gave; raises `RunError`, and changes nothing, unless it fits these nodes."""
        if set(states) != set(self._states):
            rule = f"this federation has {len(self._states)} clients, and one saved state for each is needed"
            raise RunError(f"{rule}, got {len(states)} states that do not fit; resume with the run's own configuration")
        for node_id, state in states.items():
            try:
                _state_from_bytes(state)
            except (DecodeError, TypeError, ValueError) as error:
                partition = node_id - _FIRST_NODE_ID
                rule = f"the saved state of client {partition} is a serialised RecordDict"
                raise RunError(f"{rule}, got bytes that are not ({type(error).__name__}); start the run anew") from None
        self._states = {node_id: bytes(states[node_id]) for node_id in self._states}

    def _new_id(self, message: Message) -> str:
        """An id from what the message says, as Flower's, but without the time of day; another one while that waits."""
        meta = message.metadata
        content = message.content.object_id if message.has_content() else repr(message.error)
        message_id = _digest(f"{meta.dst_node_id} {meta.message_type} {meta.group_id} {content}")
        while message_id in self._replies:
            message_id = _digest(message_id)
        return message_id

    def _carry(self, message: Message, message_id: str, instruction_id: str, direction: Direction) -> Message:
        """`message` as its receiver gets it, from the bytes that crossed; enters them in `traffic`."""
        message.metadata.__dict__["_message_id"] = message_id  # Flower's own way: there is no setter
        node_id = message.metadata.dst_node_id if direction == "down" else message.metadata.src_node_id
        bodies = [(type(body), body.SerializeToString()) for body in _bodies(message, node_id, direction)]
        delivered = _delivered([kind.FromString(data) for kind, data in bodies])
        meta, wire_bytes = message.metadata, sum(len(data) for _, data in bodies)
        flower_bytes = count_bytes(message.content) if message.has_content() else 0
        self.traffic.append(
            Traffic(
                instruction_id, node_id, direction, meta.message_type, meta.group_id,
                wire_bytes, flower_bytes, message.has_error(),
            )
        )  # fmt: skip
        return delivered

    def _answer(self, instruction: Message) -> Message:
        """What the client replies; what it raises, this raises.

        As in Flower's client process, a state that a failing client has changed stays changed.
        """
        node_id = instruction.metadata.dst_node_id
        if node_id not in self._states:
            reason = f"there is no node {node_id} in this federation; take the ids from get_node_ids()"
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, reason), reply_to=instruction)
        context = Context(
            run_id=self._run.run_id,
            node_id=node_id,
            node_config={"partition-id": node_id - _FIRST_NODE_ID, "num-partitions": len(self._states)},
            state=_state_from_bytes(self._states[node_id]),
            run_config=dict(self._run_config),
        )
        try:
            reply = self._app(instruction, context)
        finally:
            self._states[node_id] = _state_to_bytes(context.state)
        if not isinstance(reply, Message) or reply.metadata.reply_to_message_id != instruction.metadata.message_id:
            kind = instruction.metadata.message_type
            raise TypeError(f"the handler of {kind!r} returns Message(content, reply_to=message), got {reply!r:.80}")
        return reply


def count_bytes(content: RecordDict) -> int:
    """Flower's own size of the records: values and names. Its empty values, which it refuses to count, are 0 bytes."""
    total = 0
    for record in content.values():
        if isinstance(record, ConfigRecord):
            countable = {name: value for name, value in record.items() if value not in ("", b"", [])}
            total += ConfigRecord(countable).count_bytes() + sum(len(name) for name in record if name not in countable)
        else:
            total += record.count_bytes()
    return total


def wire_bytes(message: Message, direction: Direction) -> int:
    """Bytes of the protobuf bodies that carry a sent message, over whichever Grid: the in-process one counts alike."""
    node_id = message.metadata.dst_node_id if direction == "down" else message.metadata.src_node_id
    return sum(len(body.SerializeToString()) for body in _bodies(message, node_id, direction))


def _bodies(message: Message, node_id: int, direction: Direction) -> list[Body]:
    """All bodies that pass between SuperLink and SuperNode for one message: envelope first, then object by object."""
    node, run_id, message_id = Node(node_id=node_id), message.metadata.run_id, message.metadata.message_id
    with no_object_id_recompute():
        objects = {name: item.deflate() for name, item in get_all_nested_objects(message).items()}
        tree = get_object_tree(message)
    envelope = message_to_proto(remove_content_from_message(message))
    bodies: list[Body] = []
    if direction == "down":
        bodies += [PullMessagesRequest(node=node)]
        bodies += [PullMessagesResponse(messages_list=[envelope], message_object_trees=[tree])]
        for name, data in objects.items():
            bodies += [PullObjectRequest(node=node, run_id=run_id, object_id=name)]
            bodies += [PullObjectResponse(object_found=True, object_available=True, object_content=data)]
        bodies += [ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=message_id)]
        return bodies
    bodies += [
        PushMessagesRequest(
            node=node, messages_list=[envelope], message_object_trees=[tree], clientapp_runtime_list=[1.0]
        ),
        PushMessagesResponse(
            reconnect=Reconnect(reconnect=5),
            results={message_id: 0},
            objects_to_push=list(objects),
            session_id=_SESSION_ID,
        ),
    ]
    for name, data in objects.items():
        bodies += [
            PushObjectRequest(node=node, run_id=run_id, object_id=name, object_content=data, session_id=_SESSION_ID),
            PushObjectResponse(stored=True),
        ]
    return bodies


def _delivered(bodies: list[Body]) -> Message:
    """The message that these bodies carry, put together again from its objects."""
    envelope = next(body for body in bodies if isinstance(body, PullMessagesResponse | PushMessagesRequest))
    requests = [body.object_id for body in bodies if isinstance(body, PullObjectRequest | PushObjectRequest)]
    contents = [body.object_content for body in bodies if isinstance(body, PullObjectResponse | PushObjectRequest)]
    root = envelope.message_object_trees[0].object_id
    message = cast(Message, inflate_object_from_contents(root, dict(zip(requests, contents, strict=True))))
    message.metadata.__dict__["_message_id"] = envelope.messages_list[0].metadata.message_id
    return message


def _state_to_bytes(state: RecordDict) -> bytes:
    return cast(bytes, recorddict_to_proto(state).SerializeToString(deterministic=True))


def _state_from_bytes(data: bytes) -> RecordDict:
    return recorddict_from_proto(ProtoRecordDict.FromString(data))


def _digest(text: str) -> str:
    """As long as Flower's ids: 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def _text(reason: str) -> str:
    """`reason` as text that protobuf can carry."""
    return reason.encode("utf-8", "backslashreplace").decode()
