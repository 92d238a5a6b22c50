"""The vocabulary of the sample product, and sentences composed from it."""

from __future__ import annotations

import re

import numpy as np

from cellarer.demo.pourtrait.dice import Dice


def _terms(text: str) -> list[str]:
    return text.split(";")


FIRST_NAMES = _terms(
    "Ada;Alma;Amir;Anna;Antoine;Beatriz;Boris;Carla;Chloé;Clara;Daan;Dario;David;Elena;Elif;Emma;"
    "Erik;Eva;Farid;Felix;Finn;Frida;Gabriel;Giulia;Greta;Hana;Hugo;Ida;Ilse;Imre;Ines;Ivan;Jan;"
    "Jasper;Jonas;Julia;Karim;Katja;Kofi;Lars;Laura;Lea;Leon;Lina;Luca;Maja;Marc;Maria;Marta;"
    "Mateo;Mei;Mila;Mina;Nadia;Nils;Nina;Noah;Nora;Olga;Oscar;Pablo;Paula;Pia;Rafael;Rosa;Ruben;"
    "Sami;Sara;Sofia;Stefan;Tara;Theo;Tom;Uma;Vera;Victor;Wanda;Yara;Yusuf;Zoe"
)
LAST_NAMES = _terms(
    "Abel;Adler;Alves;Andersen;Bakker;Bauer;Becker;Bianchi;Blanc;Borg;Bruun;Caruso;Castro;Conti;"
    "Costa;Dahl;Delgado;Dubois;Dvořák;Eder;Engel;Evans;Fabre;Ferrari;Fischer;Fontaine;Fuchs;"
    "Garcia;Girard;Greco;Haas;Hansen;Hartmann;Holm;Horvat;Iglesias;Jansen;Jensen;Kaya;Keller;"
    "Klein;Kovács;Kowalski;Krause;Lambert;Lang;Larsen;Lefèvre;Lehmann;Lindberg;Lopez;Maas;Marino;"
    "Martin;Mayer;Meyer;Molina;Moreau;Moser;Müller;Navarro;Nielsen;Novak;Okafor;Ortega;Peters;"
    "Petit;Pinto;Popescu;Ricci;Rivera;Romero;Rossi;Roux;Santos;Schmid;Silva;Smit;Sørensen;Torres;"
    "Varga;Vidal;Visser;Vogel;Wagner;Weber;Winter;Wolf;Wood;Young;Zimmer"
)
ESTATES = _terms(
    "Château;Domaine;Weingut;Bodega;Tenuta;Quinta;Cantina;Clos;Mas;Podere;Finca;Castello;Cave;"
    "Maison;Villa;Casa"
)
VINEYARDS = _terms(
    "Alte Reben;Bellavista;Bois Noir;Côte Rouge;Croix Blanche;El Molino;Grand Champ;Heiligenberg;"
    "Haut Marbeau;La Cerisaie;La Garenne;Las Piedras;Les Amandiers;Les Terrasses;Monte Alto;"
    "Monteverde;Pedra Negra;Petit Bois;Rosenberg;San Lorenzo;Santa Clara;Sierra Vieja;Sonnenhang;"
    "Steinkogel;Sur le Puits;Terra Rossa;Val Dorée;Valle Secreta;Vieux Moulin;Vigna Grande"
)
CUVEES = _terms(
    "Réserve;Gran Reserva;Vieilles Vignes;Cuvée Spéciale;Riserva;Selezione;Premier Choix;"
    "Spätlese;Brut Nature;Tradition;Sélection Parcellaire;Old Vines;Single Vineyard;Crianza;"
    "Grand Vin;Édition Limitée;Kabinett;Superiore;Barrel Select;Terroir"
)
REGIONS = [
    tuple(line.split("/"))
    for line in _terms(
        "Bordeaux/France;Burgundy/France;Champagne/France;Rhône/France;Loire/France;Alsace/France;"
        "Languedoc/France;Beaujolais/France;Jura/France;Tuscany/Italy;Piedmont/Italy;Veneto/Italy;"
        "Sicily/Italy;Campania/Italy;Alto Adige/Italy;Rioja/Spain;Ribera del Duero/Spain;"
        "Priorat/Spain;Rías Baixas/Spain;Jerez/Spain;Douro/Portugal;Alentejo/Portugal;Dão/Portugal;"
        "Mosel/Germany;Rheingau/Germany;Pfalz/Germany;Baden/Germany;Wachau/Austria;"
        "Burgenland/Austria;Valais/Switzerland;Tokaj/Hungary;Santorini/Greece;Naoussa/Greece;"
        "Kakheti/Georgia;Napa Valley/United States;Willamette Valley/United States;"
        "Finger Lakes/United States;Mendoza/Argentina;Maipo/Chile;Colchagua/Chile;"
        "Barossa/Australia;Yarra Valley/Australia;Margaret River/Australia;"
        "Marlborough/New Zealand;Central Otago/New Zealand;Stellenbosch/South Africa;"
        "Swartland/South Africa;Bekaa Valley/Lebanon"
    )
]
GRAPES = _terms(
    "Aglianico;Albariño;Assyrtiko;Barbera;Blaufränkisch;Cabernet Franc;Cabernet Sauvignon;"
    "Carignan;Carménère;Chardonnay;Chenin Blanc;Cinsault;Corvina;Furmint;Gamay;Gewürztraminer;"
    "Grenache;Grüner Veltliner;Malbec;Marsanne;Merlot;Mourvèdre;Nebbiolo;Nerello Mascalese;"
    "Pinot Gris;Pinot Meunier;Pinot Noir;Riesling;Roussanne;Sangiovese;Saperavi;Sauvignon Blanc;"
    "Sémillon;Syrah;Tannat;Tempranillo;Touriga Nacional;Verdejo;Viognier;Xinomavro;Zinfandel"
)
OCCASIONS = _terms(
    "a quiet evening;birthday;anniversary;Sunday lunch;dinner with friends;tasting group;"
    "new job;picnic;New Year's Eve;wedding;family visit;after work;barbecue;holiday;just because"
)
FOODS = _terms(
    "roast chicken with lemon;duck breast;mushroom risotto;grilled sea bass;lamb shoulder;"
    "aged Comté;goat cheese;oysters;tomato pasta;beef stew;Thai curry;sushi;charcuterie;"
    "pumpkin soup;steak frites;ratatouille;veal saltimbocca;dark chocolate;apple tart;"
    "cod with fennel;lentil salad;pizza;roast pork;venison ragout;nothing at all"
)

_SLOTS = {
    "fruit": (
        "blackberry;black cherry;sour cherry;cassis;red plum;dried fig;raspberry;wild strawberry;"
        "cranberry;blueberry;pomegranate;lemon peel;lime;pink grapefruit;green apple;baked apple;"
        "quince;white peach;apricot;ripe pear;pineapple;passion fruit;mandarin;orange zest;melon;"
        "gooseberry;mirabelle;candied lemon;rhubarb;damson;redcurrant;mulberry;yellow plum;lychee"
    ),
    "note": (
        "cedar;tobacco leaf;leather;graphite;wet stone;crushed rocks;flint;smoke;espresso;cocoa;"
        "dark chocolate;vanilla;toasted oak;clove;cinnamon;white pepper;black pepper;liquorice;"
        "star anise;fennel;eucalyptus;mint;thyme;rosemary;dried hay;chamomile;acacia;violets;"
        "rose petals;orange blossom;honey;beeswax;brioche;hazelnut;almond;sea salt;iodine;"
        "forest floor;truffle;black tea;bay leaf;tomato leaf;green bell pepper;petrol;ginger"
    ),
    "texture": (
        "silky;velvety;chewy;grippy;fine-grained;dusty;polished;crisp;creamy;waxy;lean;generous;"
        "supple;firm;chalky;juicy;taut;round;linear;plush;airy;dense"
    ),
    "acid": (
        "bright;racy;mouth-watering;soft;well-integrated;piercing;fresh;lively;restrained;steely;"
        "balanced;vibrant"
    ),
    "verdict": (
        "drink now;hold for two more years;will reward patience;at its peak;better with air;"
        "a bargain at the price;worth buying again;past its best, still charming;decant for an"
        " hour;serve a little cooler;needs food;surprisingly youthful;lovely on its own"
    ),
    "place": (
        "the balcony;Nina's kitchen;a small bistro;the cellar;my parents' house;the tasting room;"
        "a terrace by the lake;the office party;the garden;a cabin in the hills;the harbour"
    ),
    "food": ";".join(FOODS),
    "grape": ";".join(GRAPES),
    "region": ";".join(region for region, _ in REGIONS),
    "name": ";".join(FIRST_NAMES),
    "number": ";".join(str(number) for number in range(2, 98)),
    "year": ";".join(str(year) for year in range(1985, 2024)),
}
_TASTING = (
    "The nose opens with {fruit}, {note} and a trace of {note}.",
    "Aromas of {fruit} and {fruit} come first, then {note} after {number} minutes in the glass.",
    "On the palate it is {texture} and {acid}, with {fruit} carried by {note}.",
    "The tannins feel {texture}, the acidity {acid}, and {note} lingers for {number} seconds.",
    "Medium {texture} body; {fruit} turns towards {note}, then {note}.",
    "Finish of {note} and {fruit}, {texture} to the end: {verdict}.",
    "Reminds me of the {year} from {region}, only more {texture} and less {acid}.",
    "With {food} the {fruit} steps back and {note} comes forward.",
    "{name} found {fruit}, I found {note}; we agreed on {verdict}.",
    "Opened at {place}, decanted for {number} minutes: {acid} {fruit}, {texture} core, {note}.",
    "Compared with the {year} it shows less {note}, more {fruit} and a {texture} middle.",
    "A {texture} {grape} with {acid} acidity, {fruit} up front and {note} behind; {verdict}.",
)
_ADVICE = (
    "Since you rated the {year} {grape} from {region} highly, its {note} should please you.",
    "Your last {number} bottles lean towards {texture} wines with {fruit} and {note}.",
    "Serve it with {food} at {place}; the {acid} acidity cuts through.",
    "It scores {number} percent on {note} and {number} percent on {fruit} in your profile.",
    "You tend to avoid {note}, so I left out {region} and looked at {region} instead.",
    "The {year} is ready: {verdict}.",
    "{name} in your group liked a similar {grape} for its {fruit} and {texture} tannins.",
    "If {food} is planned, a {texture} {grape} from {region} is the safer choice.",
    "There are {number} bottles of {grape} in your cellar, none with this much {note}.",
)
_ASKING = (
    "Suggest a {texture} wine with {fruit} to go with {food}.",
    "We are {number} people at {place} and eat {food}; what should I open?",
    "Find something like the {year} {grape} from {region}, but more {texture}.",
    "I want {note} and {fruit}, not too {acid}, for under {number} euros.",
    "What in my cellar is ready, goes with {food} and would surprise {name}?",
    "Which {grape} from {region} should I buy before the {year} is gone?",
)


class Sentences:
    """Pools of sentences, composed once; texts are put together from them."""

    def __init__(self, seed: int | str, count: int) -> None:
        self.tasting = _compose(seed, "tasting", _TASTING, count)
        self.advice = _compose(seed, "advice", _ADVICE, count)
        self.asking = _compose(seed, "asking", _ASKING, count // 4 + 1)


def _compose(seed: int | str, name: str, templates: tuple[str, ...], count: int) -> list[str]:
    """`count` sentences: each template in turn, its slots filled by the dice."""
    dice = Dice(seed)
    sentences: list[str] = []
    for number, template in enumerate(templates):
        rows = np.arange(number, count, len(templates), dtype=np.uint64)
        slots = re.findall(r"\{(\w+)\}", template)
        columns = [
            dice.pick(_terms(_SLOTS[slot]), f"{name}.{number}.{place}", rows)
            for place, slot in enumerate(slots)
        ]
        pattern = re.sub(r"\{\w+\}", "%s", template)
        sentences += [pattern % words for words in zip(*columns, strict=True)]
    return sentences
