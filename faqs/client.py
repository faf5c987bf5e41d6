"""The client as Flower runs it: thin handlers around `Participant`, whose bytes are all that a node keeps.

Messages carry one `ConfigRecord` named `faqs` with one field: `text` in the set-up, `blob` afterwards.
"""

import faqs.engine  # noqa: F401, I001 - sets Flower's environment before Flower is imported

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from faqs.errors import RunError, WireError
from faqs.participant import Assignment, Participant

RECORD = "faqs"

app = ClientApp()


def content_of(field: str, value: str | bytes) -> RecordDict:
    """One record with one field."""
    return RecordDict({RECORD: ConfigRecord({field: value})})


def read_blob(content: RecordDict) -> bytes:
    """The blob of a message; raises `WireError`."""
    blob = content.config_records[RECORD].get("blob") if RECORD in content.config_records else None
    if not isinstance(blob, bytes):
        raise WireError(f"a message of a round carries one blob in the record {RECORD!r}, got none")
    return blob


def read_text(content: RecordDict) -> str:
    """The text of a set-up message; raises `WireError`."""
    text = content.config_records[RECORD].get("text") if RECORD in content.config_records else None
    if not isinstance(text, str):
        raise WireError(f"a set-up message carries one text in the record {RECORD!r}, got none")
    return text


def load_participant(state: RecordDict) -> Participant:
    """The client that a node's state holds; raises `RunError` when there is none yet."""
    if RECORD not in state.config_records:
        raise RunError(
            "a client is set up before its first round, got a round first: the server sends the set-up again"
        )
    return Participant.from_bytes(read_blob(state))


def _store(state: RecordDict, participant: Participant) -> None:
    state[RECORD] = ConfigRecord({"blob": participant.to_bytes()})


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Which share of the data this node holds."""
    return Message(content_of("text", str(context.node_config["partition-id"])), reply_to=message)


@app.query("setup")
def setup(message: Message, context: Context) -> Message:
    """Take the assignment, start from the common seed; answers with the number of training samples."""
    assignment = Assignment.from_json(read_text(message.content))
    samples = len(assignment.data().train.labels)
    _store(context.state, Participant.start(assignment))
    return Message(content_of("text", str(samples)), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round."""
    participant = load_participant(context.state)
    reply = participant.train(int(message.metadata.group_id), read_blob(message.content))
    _store(context.state, participant)
    return Message(content_of("blob", reply), reply_to=message)


@app.evaluate("final")
def final(message: Message, context: Context) -> Message:
    """Personalise."""
    participant = load_participant(context.state)
    reply = participant.finalise(int(message.metadata.group_id), read_blob(message.content))
    _store(context.state, participant)
    return Message(content_of("blob", reply), reply_to=message)
