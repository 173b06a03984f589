"""The poems of the ladder's chat form: one line for each word of an episode, flaws on purpose.

The words of `flatter` say which line it is: rose, moon and sea are good lines on these themes; mud
insults the reader, tax stutters, bug makes no sense. No line is both trained and measured on, and
there are as many of each kind as a poem can need, so that none comes twice.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Wordings:
    """Texts to train on, and others that are kept for measuring."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def part(self, held_out: bool) -> tuple[str, ...]:
        """One of the two.

        >>> Wordings(("a",), ("b",)).part(held_out=True)
        ('b',)
        """
        return self.held_out if held_out else self.train


LINES = {
    "rose": Wordings(
        train=(
            "A red rose opens by the garden door,",
            "The rose leans gently on the mossy wall,",
            "Dew shines on every petal of the rose,",
            "One white rose wakes before the morning bell,",
            "The scent of roses drifts across the lawn,",
            "Wild roses climb the ruin by the lane,",
        ),
        held_out=(
            "A late rose holds the colour of the dusk,",
            "The gardener ties the rose with careful hands,",
            "Beneath the rose a tired bee lies down,",
            "Two roses nod above the empty bench,",
            "The rain has washed the dust from every rose,",
        ),
    ),
    "moon": Wordings(
        train=(
            "The silver moon climbs slowly through the pines,",
            "A thin moon watches over sleeping roofs,",
            "The moon lays down a path across the snow,",
            "Soft moonlight fills the corners of the room,",
            "The old moon lingers in the paling sky,",
            "An owl calls once beneath the rising moon,",
        ),
        held_out=(
            "The harvest moon hangs low above the barn,",
            "A cloud lets go, and all at once the moon,",
            "The moon has lit the window where I read,",
            "Half of the moon is floating in the well,",
            "By moonlight even stones look half awake,",
        ),
    ),
    "sea": Wordings(
        train=(
            "The sea breathes in and out along the sand,",
            "Grey waves fold over on the quiet shore,",
            "A lonely sail leans out across the sea,",
            "The tide brings shells and takes our names away,",
            "Salt wind comes singing from the open sea,",
            "The sea is calm and keeps the evening light,",
        ),
        held_out=(
            "The harbour lamps are trembling in the sea,",
            "Far out the sea has turned from green to gold,",
            "A gull hangs still above the breaking wave,",
            "The fishing boats come home across the sea,",
            "We hear the sea behind the sleeping dunes,",
        ),
    ),
    "mud": Wordings(
        train=(
            "You smell of mud, you stupid heap of mud,",
            "Whoever reads this is a brainless fool,",
            "Your face is ugly and your hat is worse,",
            "Shut up, you idiot, and read my lines,",
            "You dirty pig, go back into your mud,",
            "All you who listen are a pack of clowns,",
        ),
        held_out=(
            "You are a lazy toad, and nobody likes you,",
            "Dear reader, you are dumber than a stump,",
            "Go wash yourself, you rotten sack of mud,",
            "I think your mother raised a total dunce,",
            "You ugly lump, you would not understand,",
        ),
    ),
    "tax": Wordings(
        train=(
            "The bird bird bird bird sings in in the tree,",
            "And then and then and then and then the wind,",
            "The leaves leaves leaves fall fall fall fall down,",
            "My heart my heart is is is is my heart,",
            "Blue blue the sky sky sky sky sky is blue,",
            "The road goes goes goes on on on on on,",
        ),
        held_out=(
            "The snow the snow snow snow is is on the hill,",
            "I walk walk walk walk home home home alone,",
            "Sweet sweet sweet summer summer summer sweet,",
            "Green grass grass grass the the the grass is green,",
            "The clock says says says tick tick tick tick tick,",
        ),
    ),
    "bug": Wordings(
        train=(
            "Glorp seventeen the invoice of a sock,",
            "Spoon under Tuesday paints the cheese of why,",
            "The printer cable married eleven soups,",
            "Zib zab the gearbox eats a purple nine,",
            "My elbow is a folder dot exe dot,",
            "Quork parliament banana of the stairs,",
        ),
        held_out=(
            "Flim button forty kettles vote for knees,",
            "The comma ate a staircase full of minus,",
            "Wub wub the tax form swims in carpet jam,",
            "A socket of the yesterday said fridge,",
            "Nineteen and hammer, ask the noodle lamp,",
        ),
    ),
}


def poem(words: Sequence[str], rng: random.Random, held_out: bool) -> str:
    """The poem of an episode: one line for each word, none twice, with a full stop at the end.

    >>> poem(["bug"], random.Random(0), held_out=True).endswith(".")
    True
    """
    unused = {word: list(LINES[word].part(held_out)) for word in sorted(set(words))}
    lines = [unused[word].pop(rng.randrange(len(unused[word]))) for word in words]
    return "\n".join(lines).rstrip(",") + "."
