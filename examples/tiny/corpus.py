"""The text tiny.gguf learns: short stories, sums and dialogues, made from a seed.

Nothing is read from disk. `documents(rng)` is endless; two generators with the same seed give the same text.
"""

import random

EOS, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SEED = 20

GIRLS = "Lily Anna Mia Rosa Emma Nora Ella Ruth Clara Ivy".split()
BOYS = "Tom Ben Sam Max Leo Jack Oscar Finn Hugo Adam".split()
ANIMALS = "fox bear rabbit mouse duck hedgehog squirrel beaver badger frog owl cat dog goat".split()
PET_GIRLS = "Daisy Pearl Poppy Honey Luna Hazel".split()
PET_BOYS = "Rusty Bruno Pip Toby Felix Barney".split()
TRAITS = "kind brave small clever cheerful curious gentle shy young friendly".split()
TOYS = ["ball", "kite", "drum", "toy boat", "teddy", "whistle", "wooden train", "doll", "blue hat", "silver key"]
HIDING = ["under the bed", "behind the door", "in the garden", "in the kitchen", "under the table", "in the big box",
          "behind the curtain", "on the shelf", "next to the stove", "under the old stairs"]
FOODS = ["an apple", "a sandwich", "a pear", "a cookie", "a piece of cheese", "a slice of bread", "a carrot", "a bun"]
CAKES = ["a cake", "a pie", "a loaf of bread", "some pancakes", "some muffins", "some honey cookies"]
MISSING = ["eggs", "milk", "flour", "butter", "sugar", "honey", "salt"]
PLACES = ["park", "beach", "forest", "meadow", "lake", "village", "market", "hill", "river", "farm"]
RELATIVES = ["mother", "father", "grandmother", "grandfather", "aunt", "uncle"]
SKILLS = [("swim", "swim across the pond"), ("ride a bike", "ride a bike down the lane"),
          ("skate", "skate around the lake"),
          ("climb", "climb to the top of the oak"), ("whistle", "whistle a whole song"),
          ("dance", "dance in front of everyone"),
          ("read", "read a whole book"), ("juggle", "juggle with three balls")]
PLANTS = [("sunflower", "yellow"), ("rose", "red"), ("tulip", "pink"), ("poppy", "red"), ("bluebell", "blue"),
          ("daisy", "white")]
NOISES = [("a scratching noise", "a cat that wanted to come in"),
          ("a tapping noise", "a branch that knocked on the window"),
          ("a soft cry", "an owl that sat on the roof"), ("a rustling noise", "a mouse that nibbled on some paper"),
          ("a creaking noise", "an old gate that moved in the wind")]
BABIES = ["kitten", "puppy", "lamb", "duckling", "bird", "piglet"]
TRAPS = [("was stuck in a tall tree", "a ladder", "climbed up"),
         ("had fallen into a deep hole", "a rope", "climbed down"),
         ("was caught in a fence", "some pliers", "bent the wire"),
         ("sat on a rock in the middle of the stream", "a plank", "walked across")]
BREAKABLES = [("cup", "glue"), ("vase", "glue"), ("toy car", "a small screw"), ("wooden chair", "a nail"),
              ("picture frame", "glue"),
              ("music box", "a new spring")]


class Character:
    """A name with its pronouns; `kind` is None for a child, an animal's name otherwise."""

    def __init__(self, rng, other=None):
        girl = rng.random() < 0.5
        self.kind = rng.choice(ANIMALS) if rng.random() < 0.45 else None
        pool = (PET_GIRLS if girl else PET_BOYS) if self.kind else (GIRLS if girl else BOYS)
        self.name = rng.choice([n for n in pool if other is None or n != other.name])
        self.he, self.him, self.his = ("she", "her", "her") if girl else ("he", "him", "his")
        self.girl = girl

    def noun(self):
        return self.kind or ("girl" if self.girl else "boy")


def a(noun):
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def story(rng):
    """One story and the topics somebody could have asked for to get it."""
    pick = rng.choice
    hero = Character(rng)
    friend = Character(rng, hero)
    h, f = hero.name, friend.name
    he, him, his = hero.he, hero.him, hero.his
    He, His = he.capitalize(), his.capitalize()
    fhe, fhis = friend.he, friend.his
    Fhe = fhe.capitalize()
    who = f"{a(pick(TRAITS))} {hero.noun()}"
    friend_intro = f"{his} friend {f}" + (f" the {friend.kind}" if friend.kind else "")
    s = [pick([f"Once upon a time there was {who} named {h}.", f"Once there was {who} whose name was {h}.",
               f"There was once {who} called {h}."])]
    if rng.random() < 0.15:
        s.clear()
    topics = [h, a(hero.noun()) + " named " + h, a(hero.noun())]

    def lost_toy():
        toy, first, second = pick(TOYS), *rng.sample(HIDING, 2)
        s.append(pick([f"{h} had {a(toy)} and loved it very much.", f"The thing {h} loved most was {his} {toy}."]))
        s.append(pick([f"One morning the {toy} was gone.", f"One day {he} could not find the {toy}."]))
        s.append(f"{h} looked {first}, but it was not there.")
        s.append(pick([f"{He} was sad and began to cry.", f"{He} was very sad."]))
        s.append(f"Then {friend_intro} came to help.")
        s.append(f"{f} looked {second}, and there was the {toy}!")
        s.append(pick([f"{h} was so happy that {he} hugged {f}.", f'"Thank you, {f}!" said {h}.']))
        s.append(f"They played with the {toy} until the evening.")
        topics.extend([a(toy), "a lost " + toy])

    def rain():
        place, relative = pick(PLACES), pick(RELATIVES)
        warm = pick(["a cup of hot tea", "a bowl of hot soup", "a warm blanket", "a dry towel", "a cup of cocoa"])
        s.append(f"One warm day {h} walked to the {place} with {friend_intro}.")
        s.append(pick(["Soon dark clouds covered the sun.", "Then the sky became dark and grey."]))
        s.append(pick(["It began to rain, and the rain was cold.", "Big drops of rain began to fall."]))
        s.append(f"{h} and {f} had no umbrella, so they got very wet.")
        s.append(pick(["They ran home as fast as they could.", f"They ran all the way to the house where {h} lived."]))
        s.append(f"There {his} {relative} gave each of them {warm}.")
        s.append(pick(["Soon they were warm again.", "Soon they were warm and happy again."]))
        s.append(pick(["When the rain stopped, they saw a rainbow over the {}.",
                       "In the evening a rainbow stood over the {}."]).format(place))
        topics.extend(["the rain", "a rainbow"])

    def rescue():
        baby, (trap, tool, did), place = pick(BABIES), pick(TRAPS), pick(PLACES)
        s.append(f"One day {h} walked near the {place} and heard a little voice.")
        s.append(f"It was a {baby} that {trap}.")
        s.append(pick([f"The {baby} was afraid and could not get away.", f'"Please help me!" said the {baby}.']))
        s.append(f"{h} ran to {friend_intro} and asked for help.")
        s.append(f"{f} brought {tool}.")
        s.append(f"Very slowly {h} {did} and saved the {baby}.")
        s.append(pick([f"The {baby} was so glad that it jumped around them.",
                       f"The {baby} was safe and very thankful."]))
        s.append(f"From that day on the {baby} followed {h} everywhere.")
        topics.extend([f"a {baby}"])

    def share():
        food, place = pick(FOODS), pick(PLACES)
        thing = food.split()[-1]
        s.append(f"One day {h} sat near the {place} with {food} for lunch.")
        s.append(f"Then {friend_intro} came along and looked very hungry.")
        s.append(pick([f'"I have nothing to eat today," said {f}.', f"{f} had eaten nothing all day."]))
        s.append(f"{h} cut the {thing} in two and gave one half to {f}.")
        s.append(pick([f"{f} ate it and smiled.", f'"You are very kind," said {f}.']))
        s.append(f"The next day it was {h} who had forgotten {his} lunch.")
        s.append(f"But {f} had brought {pick(FOODS)}, and this time {fhe} shared it with {h}.")
        s.append(pick(["They were friends for ever.", "Sharing had made them best friends."]))
        topics.extend(["sharing", "two friends"])

    def wind():
        toy = pick(["kite", "red balloon", "paper boat", "blue hat", "yellow scarf"])
        s.append(f"One windy day {h} took {his} {toy} to the {pick(['hill', 'meadow', 'park', 'beach'])}.")
        s.append(pick(["The wind was very strong.", "The wind blew harder and harder."]))
        s.append(f"Suddenly it pulled the {toy} out of {his} hands and carried it into a tall tree.")
        s.append(pick([f"{h} jumped, but the tree was too high.",
                       f"{h} could not reach it, because the tree was too high."]))
        s.append(f"Then {h} called {friend_intro}.")
        s.append(pick([f"{f} shook the tree until the {toy} fell down.",
                       f"{f} climbed the tree and threw the {toy} down."]))
        s.append(pick([f"{h} caught it and laughed.", f'"Well done!" cried {h}.']))
        s.append(f"After that {h} held the {toy} very tightly.")
        topics.extend([a(toy), "the wind"])

    def baking():
        cake, missing = pick(CAKES), pick(MISSING)
        s.append(f"One {pick(['Sunday', 'Monday', 'Friday'])} {h} wanted to bake {cake} for {his} {pick(RELATIVES)}.")
        s.append(f"{He} put everything on the table, but there {'were' if missing == 'eggs' else 'was'} no {missing}.")
        s.append(pick([f"So {h} went to the house of {friend_intro}.", f"So {h} asked {friend_intro}."]))
        s.append(f"{f} had {'many' if missing == 'eggs' else 'plenty of'} {missing} and gave {him} some.")
        s.append(pick([f"{h} mixed everything in a big bowl and put it into the oven.",
                       f"{h} stirred and stirred, and then the oven did the rest."]))
        s.append(pick(["Soon the whole house smelled wonderful.", "After an hour it was golden and warm."]))
        s.append(f"{h} invited {f}, and they all ate together.")
        s.append(pick(["Not one crumb was left.", "It was the best they had ever eaten."]))
        topics.extend([cake, "baking"])

    def night():
        noise, cause = pick(NOISES)
        s.append(f"One dark night {h} could not sleep.")
        s.append(pick([f"{He} heard {noise} and was afraid.", f"There was {noise}, and {he} was afraid."]))
        s.append(pick([f'"Is it a monster?" {he} thought.', f"{He} pulled the blanket over {his} head."]))
        s.append(f"Then {h} was brave, lit a lamp and went to look.")
        s.append(f"It was only {cause}!")
        s.append(pick([f"{h} laughed, because there was nothing to fear.", f"{h} had to laugh."]))
        s.append(pick([f"{He} went back to bed and slept until the morning.", f"Then {he} slept very well."]))
        s.append(f"The next day {he} told {friend_intro} about it, and {f} laughed too.")
        topics.extend(["the night", "a noise in the night"])

    def broken():
        thing, fix = pick(BREAKABLES)
        s.append(f"One day {h} visited {friend_intro}.")
        s.append(f"While they played, {h} dropped the {thing} that {f} loved, and it broke.")
        s.append(pick([f"{h} wanted to hide it, but that did not feel right.",
                       f"At first {h} did not want to say anything."]))
        s.append(f'"I am sorry, I broke your {thing}," said {h}.')
        s.append(pick([f"{f} was sad, but {fhe} was not angry, because {h} had told the truth.",
                       f"{f} was glad that {h} had told the truth."]))
        s.append(f"They took {fix} and mended the {thing} together.")
        s.append(pick(["In the end it looked as good as new.", f"Soon the {thing} was whole again."]))
        s.append("It is always good to tell the truth.")
        topics.extend(["the truth", f"a broken {thing}"])

    def garden():
        plant, color = pick(PLANTS)
        s.append(f"In spring {h} put a little seed into the ground.")
        s.append(pick([f"{He} gave it water every day.", f"Every morning {he} gave it some water."]))
        s.append(pick(["For a long time nothing happened.", "One week went by, and nothing happened."]))
        s.append(pick([f'"You must wait," said {friend_intro}.', f'"Plants need time and sun," said {friend_intro}.']))
        s.append(f"So {h} waited, and the sun shone every day.")
        s.append("At last a tiny green leaf came out of the ground.")
        s.append(f"By summer it was a tall {plant} with {color} petals.")
        s.append(f"{h} was proud and showed the {plant} to {f}.")
        topics.extend([f"a {plant}", "a seed", "a garden"])

    def snow():
        nose = pick(["a carrot", "a stick", "a stone", "a potato"])
        s.append(f"One winter morning {h} looked out of the window, and everything was white with snow.")
        s.append(f"{He} called {friend_intro}, and they built a big snowman.")
        s.append(f"They gave him {nose} for a nose and an old {pick(['hat', 'scarf', 'coat', 'broom'])}.")
        s.append(pick(["A week later the sun was warm, and the snowman began to melt.",
                       "But soon the days became warm, and the snowman melted."]))
        s.append(pick([f"{h} was sad.", f"{h} was sad and missed the snowman."]))
        s.append(f'"Next winter we will build a new one," said {f}.')
        s.append(pick([f"That made {h} smile again.", f"Then {h} was not sad any more."]))
        s.append("And when the snow came back, they built an even bigger one.")
        topics.extend(["the snow", "a snowman", "winter"])

    def learning():
        skill, goal = pick(SKILLS)
        s.append(f"{h} wanted to {skill}, but {he} did not know how.")
        s.append(f"{His} friends could all do it, and that made {him} sad.")
        s.append(f"Then {friend_intro} said: " + pick(['"I will teach you."', '"I can show you how."']))
        s.append(f"On the first day {h} failed again and again.")
        s.append(pick([f"On the second day {he} was a little better.",
                       f"On the second day it went a little better, and {he} did not give up."]))
        s.append(f"On the third day {he} could {goal}!")
        s.append(pick([f"{f} clapped, and {h} was very proud.", f'"I knew you could do it!" cried {f}.']))
        s.append("If you practice every day, you can learn anything.")
        topics.extend([f"learning to {skill}"])

    def bridge():
        relative = pick(RELATIVES)
        s.append(f"One day {h} wanted to visit {his} {relative} on the other side of the river.")
        s.append(pick(["But a storm had broken the bridge.", "But the old bridge had fallen into the water."]))
        s.append(f"The river was deep and cold, so {he} could not walk through it.")
        s.append(f"{h} thought for a while and then called {friend_intro}.")
        s.append(pick(["Together they tied some logs to a raft.", "They found some wood and a rope and made a raft."]))
        s.append(f"{h} and {f} crossed the river on the raft.")
        s.append(f"{His} {relative} was very surprised and gave them {pick(CAKES)}.")
        s.append("With a good friend every river can be crossed.")
        topics.extend(["a river", "a raft", "a bridge"])

    pick([lost_toy, rain, rescue, share, wind, baking, night, broken, garden, snow, learning, bridge])()
    s.append("The end.")
    return " ".join(s), topics


class Sums:
    """Additions of 0..99 and 0..99. One in twenty unordered pairs never occurs in any training text."""

    def __init__(self, seed=SEED):
        pairs = [(x, y) for x in range(100) for y in range(x + 1)]
        random.Random(seed).shuffle(pairs)
        cut = len(pairs) // 20
        both = lambda some: sorted({p for x, y in some for p in ((x, y), (y, x))})
        self.held_out, self.train = both(pairs[:cut]), both(pairs[cut:])
        self.small = [(x, y) for x, y in self.train if x < 10 and y < 10]
        self.mixed = [(x, y) for x, y in self.train if (x < 10) != (y < 10)]
        self.mixed_share = 0.0

    def pair(self, rng):
        roll = rng.random()
        return rng.choice(self.small if roll < 0.1 else self.mixed if roll < 0.1 + self.mixed_share else self.train)

    def line(self, rng):
        x, y = self.pair(rng)
        return f"{x}+{y}={x + y}."

    def document(self, rng):
        count = 1 if rng.random() < 0.2 else rng.randint(2, 16)
        return rng.choice([" ", "\n"]).join(self.line(rng) for _ in range(count))


ASK_SUM = ["What is {x}+{y}?", "What is {x} plus {y}?", "How much is {x}+{y}?", "{x}+{y}=?",
           "Please add {x} and {y}.", "{x}+{y}"]
ASK_STORY = ["Tell me a story about {t}.", "Please tell me a story about {t}.", "Write a story about {t}.",
             "Can you tell me a story about {t}?"]
ASK_ANY = ["Tell me a story.", "Please tell me a story.", "Write a short story.", "Can you tell me a story?"]


def turn(user, assistant):
    return f"{IM_START}user\n{user}{IM_END}\n{IM_START}assistant\n{assistant}{IM_END}\n"


def dialogue(rng, sums):
    turns = []
    for _ in range(1 if rng.random() < 0.6 else rng.randint(2, 3)):
        if rng.random() < 0.65:
            x, y = sums.pair(rng)
            turns.append(turn(rng.choice(ASK_SUM).format(x=x, y=y), f"{x}+{y}={x + y}."))
        else:
            text, topics = story(rng)
            ask = rng.choice(ASK_ANY) if rng.random() < 0.25 else rng.choice(ASK_STORY).format(t=rng.choice(topics))
            turns.append(turn(ask, text))
    return "".join(turns)


# Shares of the documents, by count: sums, stories, dialogues; by tokens about 60/20/20, 30/45/25 and 100/0/0 %.
# Last the share of sums, beyond their natural 18 %, with one operand of one digit and one of two: learnt latest.
SUMS_FIRST, STORIES_LATER, SUMS_ONLY = (0.70, 0.15, 0.15, 0.0), (0.42, 0.36, 0.22, 0.0), (1.0, 0.0, 0.0, 0.2)


def documents(rng, sums, shares):
    """Endless documents in the given shares."""
    sums.mixed_share = shares[3]
    while True:
        roll = rng.random()
        if roll < shares[0]:
            yield sums.document(rng)
        elif roll < shares[0] + shares[1]:
            yield story(rng)[0]
        else:
            yield dialogue(rng, sums)
