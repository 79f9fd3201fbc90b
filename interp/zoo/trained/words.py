"""The words the zoo's tokenizers are made of, so that plots of attention are readable."""

_TEXT = """
sun moon star sky rain snow wind fire earth stone sand river lake sea wave island hill valley
forest tree leaf root seed grass flower rose fruit apple pear plum grape lemon peach bread
butter cheese milk honey salt sugar rice soup meat fish egg cake tea coffee water wine cup
bowl plate fork knife spoon pot pan oven table chair bed lamp door window wall floor roof
house room garden fence gate road path bridge tower castle city town village market shop
school church farm field barn horse cow pig sheep goat dog cat mouse rabbit bear wolf fox
lion tiger deer bird crow duck goose hen owl eagle snake frog bee ant spider king queen
prince knight judge doctor nurse teacher student baker farmer sailor soldier singer dancer
painter writer poet friend mother father sister brother baby child head hair eye ear nose
mouth tooth neck arm hand finger leg foot knee heart bone skin hat coat shirt dress skirt
shoe boot sock glove belt ring watch coin purse bag box key lock clock bell drum flute
piano violin song dance game ball doll kite book page letter paper pen ink paint brush
picture map flag ship boat train car bus plane wheel engine rope chain nail hammer saw axe
spade sword shield arrow red blue green yellow black white brown gray pink gold silver
iron copper glass wood wool silk cotton leather day night hour week month year spring
summer autumn winter north south east west cloud storm dust ice wing tail horn
"""

WORDS: tuple[str, ...] = tuple(_TEXT.split())
