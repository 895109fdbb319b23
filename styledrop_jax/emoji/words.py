"""The corpus's tables of names: old names, everyday words for labels, and the vocabularies."""


def _names(text: str) -> frozenset[str]:
    """The names in a text of "name, name, …"."""
    return frozenset(" ".join(text.split()).split(", "))


def _pairs(text: str) -> dict[str, str]:
    """The pairs in a text of "name = other name, name = other name, …"."""
    pairs = {}
    for pair in " ".join(text.split()).split(", "):
        name, _, other = pair.partition(" = ")
        pairs[name] = other
    return pairs


# An older label of an emoji = emojibase's. Case and punctuation do not count on either side.
RENAMED = _pairs(
    """
    laptop computer = laptop, school backpack = backpack, grinning cat face = grinning cat,
    kissing cat face = kissing cat, smiling cat face with heart-eyes = smiling cat with heart-eyes,
    face with stuck-out tongue and closed eyes = squinting face with tongue,
    smiling face with open mouth and closed eyes = grinning squinting face,
    man in suit levitating = person in suit levitating, exclamation mark = red exclamation mark,
    anticlockwise arrows button = counterclockwise arrows button, multiplication sign = multiply,
    division sign = divide, minus sign = minus, plus sign = plus, pound symbol = keycap: #
    """
)

# fxemoji is older than the common names: its own name = emojibase's label.
FXEMOJI = _pairs(
    """
    2hearts = two hearts, acorn = chestnut, americasglobe = globe showing Americas,
    anguish = anguished face, aok = OK hand, asiaaustraliaglobe = globe showing Asia-Australia,
    banknotedollar = dollar banknote, banknoteeuro = euro banknote, banknotepound = pound banknote,
    banknoteyen = yen banknote, bellcancellation = bell with slash, blackdroplet = droplet,
    blackpushpin = pushpin, blackskullcrossbones = skull and crossbones,
    blonde = person: blond hair, bolt = high voltage, bookmarktab = bookmark tabs,
    bouquetofflowers = bouquet, bowing = person bowing, bride = person with veil,
    bullhorn = megaphone, bullhornwithsoundwaves = loudspeaker, bunny = rabbit face,
    bunny-ears = people with bunny ears, bunnyside = rabbit, cat = cat face, catside = cat,
    cellphone = mobile phone, chartdownwardstrend = chart decreasing,
    chartupwardstrend = chart increasing, chilipepper = hot pepper, clock3oclock = three o'clock,
    confetti = confetti ball, construct = construction worker, controlknob = control knobs,
    crying = crying face, devilhorns = smiling face with horns, dog = dog face, dogside = dog,
    dragonhead = dragon face, dragonside = dragon, europeafricaglobe = globe showing Europe-Africa,
    evergreen = evergreen tree, fallingleaf = fallen leaf, fishcakeswirl = fish cake with swirl,
    fistedhand = oncoming fist, flexbicep = flexed biceps, floppydisk2 = floppy disk,
    folder = file folder, forkandknife = fork and knife, forkknife = fork and knife with plate,
    frontfacingchick = front-facing baby chick, frown = frowning face, gma = old woman,
    gpa = old man, grin = grinning face, grineyes = beaming face with smiling eyes,
    hampster = hamster, handheldvideocamera = video camera, hands = open hands,
    handup = person raising hand, headmassage = person getting massage,
    heartarrow = heart with arrow, heartgreen = green heart, heartpurple = purple heart,
    heartyellow = yellow heart, heels = high-heeled shoe, highspeedtrainbulletnose = bullet train,
    japaneseangrymask = goblin, leaffluttering = leaf fluttering in wind,
    leftmagnifyingglass = magnifying glass tilted left, leopardside = leopard,
    lockandkey = locked with key, lowerleftpen = pen, lowerleftpencil = pencil,
    loudlycrying = loudly crying face, makeupbag = clutch bag, mansshirt = t-shirt,
    mensrunner = running shoe, mensshoe = man's shoe, meridianglobe = globe with meridians,
    monkeyhear = hear-no-evil monkey, monkeysee = see-no-evil monkey,
    monkeyspeak = speak-no-evil monkey, mouse = mouse face, mouseside = mouse,
    musicascend = musical note, notebookdecorativecover = notebook with decorative cover,
    oldpersonalcomputer = laptop, openfolder = open file folder, opticaldiscicon = optical disk,
    personalcomputer = desktop computer, pig = pig face, pigside = pig, pigsnout = pig nose,
    pinkwallet = purse, present = wrapped gift, printericon = printer,
    rightmagnifyingglass = magnifying glass tilted right, ringingbell = bell,
    sandals = woman's sandal, screamfear = face screaming in fear, sheep = ewe,
    sleuthspy = detective, snowmountains = snow-capped mountain,
    speaker3soundwaves = speaker high volume, speechbubble = speech balloon,
    spurtingwhale = spouting whale, star = glowing star, stormcloud = cloud with lightning and rain,
    studiomic = studio microphone, sunraincloud = sun behind rain cloud,
    sweatsplash = sweat droplets, telephonereceiver2 = telephone receiver, tennisball = tennis,
    thoughtbaloon = thought balloon, threebuttonmouse = computer mouse, tiger = tiger face,
    tigerside = tiger, toykotower = Tokyo tower, turban = person wearing turban,
    videocasette = videocassette, waitress = person tipping hand, waving = waving hand,
    whitesun = sun, winking = winking face, wiredkeyboard = keyboard, keyboard = musical keyboard,
    womansshirt = woman's clothes
    """
)

# emojibase's label = what people say, which becomes the concept's label.
EVERYDAY = _pairs(
    """
    umbrella = open umbrella, umbrella with rain drops = umbrella, automobile = car,
    sport utility vehicle = blue car, racing car = race car, fire engine = fire truck,
    delivery truck = truck, articulated lorry = semi truck, vertical traffic light = traffic light,
    fuel pump = gas pump, police car light = siren, high-speed train = fast train,
    locomotive = steam train, snow-capped mountain = snowy mountain, desert island = island,
    hot beverage = coffee, teacup without handle = cup of tea, beer mug = beer,
    cocktail glass = cocktail, red apple = apple, tangerine = orange, ear of corn = corn,
    hot pepper = chili pepper, cooked rice = bowl of rice, steaming bowl = bowl of noodles,
    roasted sweet potato = sweet potato, shortcake = slice of cake, soft ice cream = ice cream cone,
    cooking = fried egg, pot of food = stew, poultry leg = chicken leg, meat on bone = meat,
    doughnut = donut, evergreen tree = pine tree, deciduous tree = tree, lady beetle = ladybug,
    honeybee = bee, ewe = sheep, bug = caterpillar, spiral shell = seashell, baby chick = chick,
    hatching chick = hatching egg, snowman = snowman in snow, snowman without snow = snowman,
    high voltage = lightning bolt, cloud with rain = rain cloud, cloud with snow = snow cloud,
    cloud with lightning and rain = storm cloud, droplet = water drop, collision = explosion,
    three o'clock = clock, hourglass done = hourglass, globe showing americas = globe,
    wrapped gift = gift, jack-o-lantern = pumpkin, locked = lock, man's shoe = shoe,
    running shoe = sneaker, woman's hat = hat, woman's boot = boot, woman's clothes = blouse,
    woman's sandal = sandal, gem stone = diamond, necktie = tie, graduation cap = graduation hat,
    high-heeled shoe = high heel, desktop computer = computer, electric plug = plug,
    video game = game controller, magnifying glass tilted left = magnifying glass,
    red paper lantern = paper lantern, closed book = book, straight ruler = ruler,
    file folder = folder, wastebasket = trash can, postbox = mailbox,
    satellite antenna = satellite dish, sports medal = medal, musical keyboard = piano,
    headphone = headphones, dollar banknote = dollar bill, game die = dice,
    pool 8 ball = eight ball, bullseye = target, tennis = tennis ball,
    performing arts = theater masks, artist palette = paint palette, warning = warning sign,
    red heart = heart, person surfing = surfer, person swimming = swimmer, memo = note,
    clapper board = movie clapper, grinning face = happy face, crying face = sad face,
    oncoming fist = fist
    """
)

# An everyday thing = its second name.
SYNONYMS = _pairs(
    """
    airplane = plane, backpack = rucksack, bee = honeybee, bicycle = bike, bowl of noodles = ramen,
    bread = loaf of bread, car = automobile, cat = kitten, chick = baby chick, cocktail = martini,
    computer = desktop computer, corn = maize, crescent moon = moon, crocodile = alligator,
    diamond = jewel, dog = puppy, donut = doughnut, eggplant = aubergine, fire = flame,
    fire truck = fire engine, flashlight = torch, game controller = gamepad, gas pump = fuel pump,
    gift = present, glasses = eyeglasses, globe = planet earth, graduation hat = graduation cap,
    hamburger = burger, hat = sun hat, high heel = high-heeled shoe,
    ice cream cone = ice cream in a cone, koala = koala bear, ladybug = ladybird,
    lightning bolt = thunderbolt, mobile phone = smartphone, motorcycle = motorbike, mouth = lips,
    old man = grandfather, old woman = grandmother, package = parcel, panda = panda bear,
    pine tree = evergreen tree, police officer = policeman, pumpkin = jack-o-lantern,
    rabbit = bunny, rabbit face = bunny face, race car = racing car, sailboat = yacht,
    santa claus = santa, seashell = shell, sheep = lamb, ship = boat, sneaker = running shoe,
    spaghetti = pasta, steam train = locomotive, t-shirt = shirt, television = tv,
    tomato = red tomato, trash can = garbage can, tree = green tree, truck = lorry,
    turtle = tortoise, watch = wristwatch
    """
)

# Names that take no article. Those that end in one s take none either.
UNCOUNTED = _names(
    """
    bread, corn, meat, sushi, spaghetti, pasta, ramen, maize, coffee, beer, fire, santa,
    santa claus, planet earth, ice cream, ice cream in a cone, stew
    """
)

# The core vocabulary is every concept of these subgroups that all nine sets drew,
CORE_SUBGROUPS = _names(
    """
    animal-amphibian, animal-bird, animal-bug, animal-mammal, animal-marine, animal-reptile,
    arts-crafts, award-medal, book-paper, clothing, computer, dishware, drink, event, food-asian,
    food-fruit, food-prepared, food-sweet, food-vegetable, game, household, light-video, lock, mail,
    medical, money, music, musical-instrument, office, phone, place-building, place-geographic,
    place-map, place-other, place-religious, plant-flower, plant-other, science, sky-weather, sound,
    sport, time, tool, transport-air, transport-ground, transport-water, writing
    """
)
# without these, which are near copies of another concept, lettering, scenes or symbols,
CORE_EXCLUDED = _names(
    """
    admission tickets, aerial tramway, bar chart, barber pole, bell with slash, bento box, bikini,
    black nib, blouse, blue book, blue car, boar, bookmark, bookmark tabs, bowling, bridge at night,
    bus stop, camera with flash, camping, card file box, card index, card index dividers,
    carousel horse, carp streamer, chart decreasing, chart increasing, chestnut, chicken, cityscape,
    cityscape at dusk, clamp, classical building, clinking beer mugs, club suit, clutch bag,
    computer disk, confetti ball, construction, control knobs, convenience store, curry rice,
    custard, cyclone, dango, department store, desert, diamond suit, dragon face, e-mail,
    euro banknote, fast train, fax machine, file cabinet, film frames, film projector, fireworks,
    first quarter moon, first quarter moon face, fish cake with swirl, fishing pole, flag in hole,
    flower playing cards, fog, foggy, fork and knife with plate, fried shrimp,
    front-facing baby chick, full moon face, globe showing asia-australia,
    globe showing europe-africa, globe with meridians, glowing star, green book, heart suit, herb,
    horizontal traffic light, horse racing, hot springs, hotel, hourglass not done,
    house with garden, houses, inbox tray, incoming envelope, japanese dolls, japanese post office,
    joker, kimono, label, last quarter moon, last quarter moon face, leaf fluttering in wind,
    ledger, level slider, light rail, link, linked paperclips, locked with key, locked with pen,
    loudspeaker, love hotel, magnifying glass tilted right, mahjong red dragon, metro,
    military medal, milky way, minibus, money with wings, monorail, moon viewing ceremony,
    mount fuji, mountain cableway, mountain railway, mouse face, musical notes, musical score,
    national park, new moon, new moon face, night with stars, note, notebook,
    notebook with decorative cover, nut and bolt, oden, old key, oncoming automobile, oncoming bus,
    oncoming police car, oncoming taxi, open file folder, open umbrella, optical disk, orange book,
    ox, page facing up, page with curl, pager, paw prints, pen, pig nose, pine decoration, poodle,
    post office, postal horn, pound banknote, purse, railway car, ram, rat, rice cracker,
    rolled-up newspaper, roller coaster, rosette, round pushpin, rugby football, running shirt,
    sake, scroll, seat, semi truck, shaved ice, sheaf of rice, shooting star, skis, slot machine,
    spade suit, sparkler, sparkles, speaker high volume, speaker low volume, spiral calendar,
    spiral notepad, spouting whale, stadium, station, stew, studio microphone,
    sun behind large cloud, sun behind rain cloud, sun behind small cloud, sun with face, sunrise,
    sunrise over mountains, sunset, suspension railway, tanabata tree, telephone receiver,
    tennis ball, tie, tokyo tower, trackball, tram, tram car, triangular ruler, trolleybus,
    two-hump camel, umbrella on ground, unlocked, video camera, videocassette, waning crescent moon,
    water buffalo, water pistol, waxing crescent moon, waxing gibbous moon, wedding, white flower,
    wind chime, world map, yen banknote
    """
)
# and with these few of other subgroups: people, faces, hands and signs.
CORE_INCLUDED = _names(
    """
    alien, alien monster, angry face, baby, broken heart, construction worker, ear, explosion, eye,
    footprints, ghost, girl, happy face, heart, man, mouth, nose, old man, old woman,
    police officer, princess, sad face, santa claus, skull, sleeping face, surfer, swimmer,
    thumbs up, warning sign, waving hand, woman
    """
)

# What the shipped models learn: of the core, the built-in pool and what people ask for first.
STARTER = _names(
    """
    airplane, apple, balloon, banana, bee, bicycle, bird, birthday cake, book, bus, cactus, car,
    castle, cat, cloud, crescent moon, crown, dog, elephant, fish, gift, guitar, hamburger,
    happy face, heart, house, key, light bulb, mushroom, orange, panda, penguin, pig face, pizza,
    rabbit, rocket, rose, sailboat, snail, star, strawberry, sun, sunflower, train, tree, turtle,
    umbrella, watermelon
    """
)
