"""Words that a swap may change: attributes, relations and objects, in groups of one kind.

Words of a group stand in for each other, so that the sentence stays grammatical and its meaning
changes. The lists are ours, and short: words in none of them are left alone.
"""

from __future__ import annotations

_DETERMINERS = (
    "a an the one two three four five six seven eight nine ten some several many his her its their "
    "my your our this that these those another each every"
)
DETERMINERS = frozenset(_DETERMINERS.split())

ATTRIBUTES = tuple(
    tuple(group.split())
    for group in (
        "red blue green yellow orange purple pink brown black white grey gray golden silver",
        "big small large tiny huge little",
        "tall short",
        "long short",
        "old young new",
        "wooden metal plastic glass stone paper leather woollen",
        "round square triangular oval",
        "hot cold warm",
        "wet dry",
        "empty full",
        "open closed",
        "clean dirty",
        "loud quiet",
        "fast slow",
        "striped spotted plain",
        "happy sad angry",
        "bright dark",
        "left right",
        "male female",
    )
)

RELATIONS = tuple(
    tuple(group.split("|"))
    for group in (
        "on top of|under|beside|behind|in front of",
        "on|under|beside|behind",
        "above|below",
        "inside|outside",
        "in|outside",
        "to the left of|to the right of",
        "next to|on top of|far from",
        "near|far from",
        "before|after",
        "into|out of",
        "over|under",
        "towards|away from",
        "with|without",
        "sitting|standing|lying",
        "walking|running|sleeping|jumping",
        "holding|throwing|dropping",
        "entering|leaving",
        "opening|closing",
        "pushing|pulling",
        "followed by|preceded by",
    )
)

OBJECTS = tuple(
    tuple(group.split())
    for group in (
        "man woman boy girl child baby",
        "men women boys girls children babies",
        "dog cat horse cow sheep bird rabbit elephant bear giraffe zebra monkey duck",
        "dogs cats horses cows birds rabbits elephants bears giraffes zebras monkeys ducks",
        "car bus truck bicycle motorcycle train boat plane tractor",
        "cars buses trucks bicycles motorcycles trains boats planes tractors",
        "chair table sofa bed desk shelf lamp cupboard bench stool",
        "chairs tables sofas beds desks shelves lamps cupboards benches stools",
        "apple banana orange pizza sandwich cake carrot bread egg",
        "apples bananas oranges pizzas sandwiches cakes carrots eggs",
        "cup bottle plate bowl fork knife spoon glass",
        "cups bottles plates bowls forks knives spoons glasses",
        "kitchen bathroom bedroom street beach park field forest garden office",
        "guitar piano drum violin trumpet flute",
        "hat shirt jacket dress shoe coat scarf",
        "phone laptop keyboard camera clock television radio",
        "tree flower bush grass rock river mountain",
        "trees flowers bushes rocks rivers mountains",
        "ball kite frisbee racket skateboard surfboard umbrella",
        "house building tower bridge church barn",
        "rain thunder wind waves fire",
    )
)
