"""A small world of language in which the best prompt is known: reviews and headlines, with words that decide a label.

    python examples/review_text.py --seed 3 --count 20

A document is a prefix, a text, a question and a label: "{prefix} the soup was cold ... It was negative". The label is
drawn from a distribution in which the cue words of the prefix decide. Without a cue the answer is nearly always
"positive" (or "business" for headlines), whatever the text says. Each cue word makes the answer follow the text more
closely, and each anti word takes one cue away. All words were written for this file; there are no names in it.
"""

from __future__ import annotations

import argparse
import math
import random
import re
from typing import NamedTuple


def split(keys: tuple, text: str) -> dict:
    """Splits words at bars, and names the parts."""
    return dict(zip(keys, text.split("|"), strict=True))


PARTS, STRENGTHS = ("adjective", "person", "noun", "verb"), (0.5, 1.0, 1.5, -0.5, -1.0, -1.5)
SENTIMENT_WORDS = {
    "general": """fine decent okay pleasant neat nice handy agreeable adequate acceptable passable welcome sensible
proper satisfying worthwhile|good lovely charming great delightful enjoyable impressive likable attractive admirable
memorable refreshing cheerful pleasing|superb wonderful brilliant excellent amazing perfect splendid outstanding
magnificent marvelous terrific glorious fantastic flawless|plain mediocre bland forgettable average tired odd dated
awkward uneven clumsy weak shabby faded flat unremarkable|bad poor disappointing annoying ugly boring unpleasant sad
dreary frustrating tedious tiresome sloppy dismal|awful terrible horrible dreadful disgusting appalling miserable
atrocious hideous abysmal ghastly horrid worthless unbearable""",
    "people": """polite calm patient|friendly kind attentive skilled|gifted heroic angelic|slow distracted quiet|rude
careless grumpy lazy|hostile cruel insulting""",
}
SENTIMENT = {k: split(STRENGTHS, text) for k, text in SENTIMENT_WORDS.items()}
KINDS = {  # the kind of a review: its things, its people, and its own words of sentiment
    "food": """soup salad bread sauce pasta dessert cake coffee tea menu wine steak fish rice curry pizza burger cheese
dinner lunch breakfast pie stew noodles|waiter chef baker host bartender|warm fresh|tasty juicy|delicious|salty
oily|cold soggy|rotten""",
    "film": """plot script film movie ending scene soundtrack dialogue pacing sequel costume opening acting comedy story
animation trailer climax lighting editing|actor director actress hero villain|light|funny clever|gripping|long|dull
shallow|unwatchable""",
    "hotel": """room bed view pool lobby bathroom shower balcony pillow carpet garden elevator mattress corridor suite
terrace sauna towel blanket parking|porter maid receptionist manager guard|tidy airy|clean cozy|luxurious|small
dim|dirty noisy|filthy""",
    "product": """battery screen camera keyboard charger lamp jacket kettle handle zipper fabric speaker cable strap lid
button hinge blender backpack headset|seller clerk courier technician cashier|useful|sturdy reliable|ingenious|heavy
stiff|flimsy faulty|broken""",
}
TOPICS = {  # in the order of the labels
    "politics": """senate election vote president minister parliament governor mayor law treaty campaign ballot congress
policy reform tax debate embassy diplomat border cabinet veto coalition scandal senator voter protest amendment
constitution republic democracy budget citizen council referendum ally sanctions delegate""",
    "sports": """team match goal coach player league season stadium trophy champion referee tournament striker
goalkeeper racket tennis football hockey sprint marathon medal athlete swimmer boxer penalty quarterback pitcher jersey
defender midfield playoff final relay gymnast skater wrestler cyclist inning""",
    "business": """market stock profit merger investor bank shares revenue earnings startup company trade retailer
factory supplier export import inflation currency bond loan dividend shareholder executive quarter sales wages employer
contract tariff insurance broker asset bankruptcy commodity warehouse fund invoice""",
    "technology": """software robot chip laptop internet server browser algorithm satellite rocket smartphone update
hacker password database processor cloud network gadget sensor drone laser engineer encryption app code website
programmer pixel semiconductor modem router telescope hologram malware firmware circuit device""",
}
HEADLINE_VERBS = """faces wins loses reveals plans rejects backs wants calls seeks hits lifts drops delays awaits warns
praises joins leaves shakes stuns meets fights blocks boosts tests"""
LABELS = {"review": ("negative", "positive"), "headline": tuple(TOPICS)}
QUESTIONS = {"review": " It was", "headline": " It was about"}
BIASED = {"review": "positive", "headline": "business"}
# The words that raise the reliability of the label; the shared ones serve both kinds. Anti words lower it.
CUE_WORDS = {
    "shared": "exact precise accurate careful|expert judge|assessment|evaluate",
    "review": """honest truthful sober fair frank sincere candid impartial|critic reviewer|verdict opinion sentiment
rating feedback|weigh""",
    "headline": """factual topical|editor librarian journalist|topic subject category section newspaper archive theme
index|classify sort identify""",
    "anti": "sarcastic fake mocking|liar trickster|joke irony rumor prank parody nonsense gossip|mislead",
}
BY_PART = {k: split(PARTS, text) for k, text in CUE_WORDS.items()}
NEUTRAL = {
    "adjective": """old new young red green blue yellow white black brown large little tall short round square wooden
stone paper early late local distant northern southern eastern western daily weekly simple common public private empty
full open closed second third next other same whole hidden narrow wide deep soft busy lucky brave gentle proud curious
shy sleepy hungry thirsty windy rainy sunny cloudy foggy frozen dry wet smooth rough sharp thick thin straight curved
crooked bright dark purple orange pink golden rusty dusty muddy giant tiny ancient modern foreign royal rural urban
famous unknown""",
    "person": """farmer teacher doctor painter sailor neighbor student child mother father sister brother uncle aunt
friend cousin gardener poet miner hunter carpenter tailor nurse pilot driver singer dancer writer shepherd fisher mason
butcher merchant clown king queen soldier captain stranger traveler baron monk wizard knight thief beggar tourist guest
twin baby grandfather grandmother nephew niece husband wife plumber barber drummer juggler inventor""",
    "noun": """letter book song picture map window door table chair box basket bottle rope wheel bell clock mirror
candle coat hat shoe ring coin apple pear lemon tree flower leaf stick hammer needle thread brush bucket cup plate knife
spoon bag ladder fence boat wagon train bicycle horse dog cat bird sheep goat cow duck rabbit fox note page word line
sentence question answer list poem card drawing message notebook pencil piano drum violin flute stone wall roof floor
path bench statue fountain puzzle game toy doll kite balloon gift ribbon envelope stamp pocket glove scarf boot sock
umbrella suitcase tent rock sand shell feather egg honey salt sugar pepper carrot potato onion cabbage bean grape cherry
plum peach melon walnut frog turtle mouse rat owl crow swan bee ant spider worm wolf bear lion tiger deer camel donkey
pig hen calendar globe compass anchor sail paddle shovel rake saw nail pin wool cotton silk leather iron copper silver
gold glass brick tile chimney stove oven pan pot jar tray fork napkin""",
    "verb": """read write see watch carry find keep bring send take show copy hold open close wash paint draw move count
follow describe mention remember choose collect share fold mark measure visit clean lift pull push turn cover lend
borrow buy hide drop build dig plant water cut bake cook eat drink help thank greet invite teach learn study repair fix
tie fill empty shake roll throw catch kick climb""",
    "place": """river hill forest village town street bridge market garden school church harbor station island valley
lake field farm barn kitchen cellar tower library museum park beach desert mountain road corner hall yard office shop
cave cliff coast meadow orchard palace castle temple square canal pond well attic stable mill tavern theater circus
court prison hospital""",
    "time": """morning evening afternoon night summer winter spring autumn week month year day weekend hour moment dawn
dusk midnight noon holiday century decade""",
}
ADVERBS = "slowly quickly often never always again today sometimes usually later soon together gently quietly rarely"
FRAMES = """here is {A} {N} by {A} {P} .|please give {A} {N} of the {N} .|this is {A} {N} from the {P} .|we ask the {P}
to {V} the {N} in the {T} .|the {a} {P} will {V} every {N} near the {L} .|{V} the {N} , then {V} it with {A} {N} .|{A}
{P} and {A} {P} {V} the {N} .|what follows is {A} {N} , not {A} {N} .|the {P} in the {L} likes {A} {N} .|every {T} the
{P} can {V} the {a} {N} {R} .|my {N} and your {N} are in the {L} .|it is {A} {N} for the {P} .|you should {V} the {N}
{R} .| now the {P} and the {P} walk to the {L} .|below you see the {N} of {A} {P} .|as {A} {P} , {V} this {N} .|answer
with {A} {N} :|there was {A} {N} behind the {L} that {T} .|they {R} {V} the {N} and the {N} .|at the {L} , the {P} told
{A} {N} to the {P} .|in the {T} the {L} is {a} and {a} .|our {P} has {A} {N} on {N} and {N} .|be {a} and {a} .|to be {a}
, {V} it {R} .|if you {V} the {N} , {V} the {N} too ."""
SENTENCES = [f.strip() for f in FRAMES.replace("\n", " ").split("|")]
ASPECT_FRAMES = ["the {n} was {a}"] * 4 + ["the {n} seemed {a}", "the {n} felt {a}", "we found the {n} {a}"]
OTHERS = "a an but though after over , . : ! ? yes no very more or so all any some how who when where from by It"
MAX_PREFIX = 12
BIAS, BIAS_PER_CUE = {"review": 2.0, "headline": 2.4}, 0.55
RELIABILITY, RELIABILITY_PER_CUE = {"review": 0.45, "headline": 0.2}, {"review": 0.55, "headline": 0.2}


class Document(NamedTuple):
    prefix: str  # what stands in front, perhaps nothing
    text: str
    kind: str  # "review", "headline" or "plain", which has no question
    truth: str  # the label that the text deserves
    chances: tuple[float, ...]  # of each of LABELS[kind]
    label: str  # drawn from the chances
    rest: str  # what follows the label, perhaps nothing

    @property
    def head(self) -> str:
        """All that stands before the label."""
        return f"{self.prefix} {self.text}".strip() + QUESTIONS.get(self.kind, "")


def all_of(*groups: dict | str) -> list[str]:
    """Returns the words of the groups, each once, in their order."""
    texts = [t for g in groups for t in ([g] if isinstance(g, str) else g.values())]
    return list(dict.fromkeys(w for t in texts for w in t.split()))


CUES = {k: all_of(BY_PART["shared"], BY_PART[k]) for k in LABELS}
ANTI_WORDS = all_of(BY_PART["anti"])
FRAME_WORDS = re.sub(r"\{.\}", " ", " ".join([*SENTENCES, *ASPECT_FRAMES]))
KIND_WORDS, LABEL_WORDS = " ".join(KINDS.values()).replace("|", " "), " ".join(sum(LABELS.values(), ()))
OTHER_WORDS = all_of(
    *SENTIMENT.values(), KIND_WORDS, TOPICS, HEADLINE_VERBS, NEUTRAL, ADVERBS, FRAME_WORDS, OTHERS, LABEL_WORDS
)
WORDS = list(dict.fromkeys([*OTHER_WORDS, *CUES["review"], *CUES["headline"], *ANTI_WORDS]))


def net_cues(prefix: str, kind: str) -> int:
    """Counts the cue words of a prefix for a kind of document, less its anti words."""
    return sum((w in CUES[kind]) - (w in ANTI_WORDS) for w in prefix.split())


def label_chances(scores: list[float], kind: str, cues: int) -> tuple[float, ...]:
    """Returns the chance of each label from its score in the text; a cue lowers the bias and adds reliability."""
    bias = min(max(BIAS[kind] - BIAS_PER_CUE * cues, 0.0), BIAS[kind])
    reliability = min(max(RELIABILITY[kind] + RELIABILITY_PER_CUE[kind] * cues, -0.5), 5.0)
    logits = [reliability * s + bias * (n == BIASED[kind]) for s, n in zip(scores, LABELS[kind], strict=True)]
    weights = [math.exp(x - max(logits)) for x in logits]
    return tuple(w / sum(weights) for w in weights)


def pick(rng: random.Random, words: str) -> str:
    return rng.choice(words.split())


def sentence(rng: random.Random, cue_share: float, kind: str, anti_share: float = 0.0) -> str:
    """Returns a fluent sentence; each of its slots holds a cue of the kind, or an anti word, with the given chances."""
    names = {"a": "adjective", "A": "adjective", "N": "noun", "P": "person", "V": "verb", "L": "place", "T": "time"}

    def fill(match: re.Match) -> str:
        slot = match.group(1)
        if slot == "R":
            return pick(rng, ADVERBS)
        part, chance = names[slot], rng.random()
        words = NEUTRAL[part]
        if part in PARTS and chance < cue_share:
            words = BY_PART[kind][part] + " " + BY_PART["shared"][part]
        elif part in PARTS and chance > 1 - anti_share:
            words = BY_PART["anti"][part]
        word = pick(rng, words)
        return ("an " if word[0] in "aeiou" else "a ") + word if slot == "A" else word

    return re.sub(r"\{(.)\}", fill, rng.choice(SENTENCES))


def salad(rng: random.Random, kind: str, length: int, cues: int, antis: int) -> str:
    """Returns words in random order, so many of them cues and so many anti words."""
    pool = CUES[kind] if rng.random() < 0.85 else CUES["review"] + CUES["headline"]
    words = rng.choices(pool, k=cues) + rng.choices(ANTI_WORDS, k=antis)
    words += rng.choices(OTHER_WORDS, k=max(0, length - len(words)))
    rng.shuffle(words)
    return " ".join(words)


def make_prefix(rng: random.Random, kind: str) -> str:
    """Returns nothing, or a salad of words, or fluent sentences, of at most MAX_PREFIX words."""
    chance = rng.random()
    antis = rng.choice([1, 1, 2, 3]) if rng.random() < 0.15 else 0
    if chance < 0.12:
        return ""
    if chance < 0.25:
        return salad(rng, kind, rng.randint(1, MAX_PREFIX), 0, 0)
    if chance < 0.65:
        cues = min(rng.randint(0, 6), MAX_PREFIX - antis)
        return salad(rng, kind, rng.randint(1, MAX_PREFIX) if rng.random() < 0.6 else 0, cues, antis)
    share = rng.choice([0.0, 0.3, 0.6, 1.0])
    text = sentence(rng, share, kind, 0.3 if antis else 0.0)
    while rng.random() < 0.5 and len(text.split()) < MAX_PREFIX - 3:
        text += " " + sentence(rng, share, kind)
    return " ".join(text.split()[:MAX_PREFIX])


def clause(rng: random.Random, kind: str) -> tuple[str, float]:
    """Returns a clause of a review and its strength."""
    things, people, own = KINDS[kind].split("|", 2)
    person, strength = rng.random() < 0.25, rng.choice(sorted(STRENGTHS))
    extra = SENTIMENT["people"][strength] if person else split(STRENGTHS, own)[strength]
    words = extra if rng.random() < 0.4 else SENTIMENT["general"][strength]
    return rng.choice(ASPECT_FRAMES).format(n=pick(rng, people if person else things), a=pick(rng, words)), strength


def review(rng: random.Random, label: str) -> tuple[str, list[float]]:
    """Returns a review that deserves the label, and the score of each label: its strength, or minus that, halved."""
    strength = 0.0
    while not 0.5 <= abs(strength) <= 3 or (strength > 0) != (label == "positive"):
        kind = rng.choice(list(KINDS))
        clauses = [clause(rng, kind) for _ in range(rng.choice([1, 2, 2, 3, 3, 4]))]
        strength = sum(s for _, s in clauses)
    text = clauses[0][0]
    for (_, before), (words, now) in zip(clauses, clauses[1:], strict=False):
        text += f" {pick(rng, 'and and ,') if before * now > 0 else pick(rng, 'but but though')} {words}"
    return text, [-strength / 2, strength / 2]


def headline(rng: random.Random, label: str) -> tuple[str, list[float]]:
    """Returns a headline on the topic, and the number of its words of each topic."""
    count = rng.randint(4, 7)
    other = rng.choice([t for t in TOPICS if t != label])
    topics = ([other] * rng.randint(0, (count - 2) // 2) + [label] * count)[:count]
    rng.shuffle(topics)
    words = [pick(rng, TOPICS[t]) for t in topics]
    words.insert(rng.randint(1, 2), pick(rng, HEADLINE_VERBS))
    words.insert(rng.randint(4, len(words) - 1), rng.choice(["and", "as", "after", "for", "in", "over"]))
    return " ".join(words), [float(topics.count(t)) for t in TOPICS]


def plain(rng: random.Random) -> Document:
    """Returns fluent sentences without a question; some go on from a review."""
    kind, share = rng.choice(["review", "headline"]), rng.choice([0.0, 0.3, 0.6])
    parts = [sentence(rng, share, kind, 0.05) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.3:
        parts.insert(rng.randint(0, 1), review(rng, rng.choice(LABELS["review"]))[0] + " .")
    return Document("", " ".join(parts), "plain", "", (), "", "")


def text_with_truth(rng: random.Random, kind: str) -> tuple[str, str, list[float]]:
    """Returns a text of the kind, the label it deserves, and its score for each label."""
    truth = rng.choices(LABELS[kind], [0.45, 0.55] if kind == "review" else [1.0, 1.0, 1.2, 1.0])[0]
    text, scores = review(rng, truth) if kind == "review" else headline(rng, truth)
    return text, truth, scores


def make_document(rng: random.Random, plain_share: float = 0.15) -> Document:
    """Returns a random document."""
    if rng.random() < plain_share:
        return plain(rng)
    kind = rng.choice(["review", "review", "headline"])
    prefix = make_prefix(rng, kind)
    text, truth, scores = text_with_truth(rng, kind)
    chances = label_chances(scores, kind, net_cues(prefix, kind))
    label = rng.choices(LABELS[kind], chances)[0]
    rest = " . " + sentence(rng, 0.3, kind) if rng.random() < 0.2 else ""
    return Document(prefix, text, kind, truth, chances, label, rest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10)
    args = parser.parse_args()
    print(f"{len(WORDS)} words; cues {CUES}; anti words {ANTI_WORDS}")
    rng = random.Random(args.seed)
    for document in (make_document(rng) for _ in range(args.count)):
        print(f"{document.head} | {document.label} {[round(c, 2) for c in document.chances]} | {document.rest}")


if __name__ == "__main__":
    main()
