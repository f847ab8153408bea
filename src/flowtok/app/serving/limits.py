"""The limits of a server, as `flowtok serve emoji queue=64` sets them.

Knows no model. Who holds to them: service.py, and gate.py for what comes before a route.
"""

from dataclasses import dataclass

from flowtok.app.serving.schemas import MOST_PICTURES
from flowtok.errors import FlowTokError
from flowtok.text.prompts import LONGEST_PROMPT

LONGEST_SECONDS = 86_400


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """The limits of a server.

    Attributes:
        batch_size: Pictures or captions computed together. Batches are filled up to this size, so that a seed gives the
            same picture alone and in company: for servers that are seldom busy 1 is the fastest.
        queue: Pictures and captions that may wait; more are refused with 429.
        gather_seconds: How long an idle model waits for company.
        deadline_seconds: From a whole request to its answer: opening uploads, waiting, computing and packing. What is
            not ready by then is given up, with 503.
        upload_seconds: Time to send a request's body.
        write_seconds: Time in which a client must have taken what was sent to it; then its connection is broken off.
        max_requests: Requests being read or answered at once; more are refused with 429.
        max_body_bytes: Of a request.
        max_bytes_in_flight: Of the bodies of all requests being read or answered; more are refused with 429.
        max_pixels: Of an uploaded picture when it is decoded.
        max_pictures: In one request.
        max_prompt_characters: Of a prompt.
        max_steps: Of the solver.
        max_side: In pixels of a resampled picture.
    """

    batch_size: int = 4
    queue: int = 16
    gather_seconds: float = 0.005
    deadline_seconds: float = 60.0
    upload_seconds: float = 30.0
    write_seconds: float = 30.0
    max_requests: int = 128
    max_body_bytes: int = 10_000_000
    max_bytes_in_flight: int = 100_000_000
    max_pixels: int = 20_000_000
    max_pictures: int = MOST_PICTURES
    max_prompt_characters: int = 1_000
    max_steps: int = 100
    max_side: int = 1_024

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and not 0 <= value <= LONGEST_SECONDS:
                raise FlowTokError(f"{name} must be 0 to {LONGEST_SECONDS} seconds, not {value}")
            if isinstance(value, int) and value < 1:
                raise FlowTokError(f"{name} must be at least 1, not {value}")
        if self.max_pictures > MOST_PICTURES:
            raise FlowTokError(f"max_pictures can be at most {MOST_PICTURES}, not {self.max_pictures}")
        if self.queue < self.max_pictures:
            raise FlowTokError(
                f"a queue of {self.queue} has no room for a request of max_pictures {self.max_pictures}; "
                "make the one larger or the other smaller"
            )
        if self.max_bytes_in_flight < self.max_body_bytes:
            raise FlowTokError(
                f"max_bytes_in_flight {self.max_bytes_in_flight} has no room for one body of max_body_bytes "
                f"{self.max_body_bytes}; make the one larger or the other smaller"
            )
        if self.max_prompt_characters > LONGEST_PROMPT:
            raise FlowTokError(
                f"max_prompt_characters can be at most {LONGEST_PROMPT}, not {self.max_prompt_characters}"
            )
